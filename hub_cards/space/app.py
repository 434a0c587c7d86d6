"""The demo page of lpg_hf as a Space; LPG_MODEL and LPG_SEGMENTER are Hub ids, or folders in this repository."""

import os

from lpg_hf.demo import LAUNCH, build_demo


demo = build_demo(os.environ.get("LPG_MODEL") or None, os.environ.get("LPG_SEGMENTER") or None)

if __name__ == "__main__":
    demo.launch(**LAUNCH)
