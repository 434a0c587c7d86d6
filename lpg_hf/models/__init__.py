"""Models, configurations and image processors; each file imports siblings and third-party packages only, as a checkpoint may carry
it; but for `convert_original_checkpoint`, which belongs to no checkpoint.
"""
