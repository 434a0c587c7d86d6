"""The cells of the bench: every row file under each of its protocols with each of its seeds.

`benchmarks/common.yaml` has `settings` and `target` that all protocols share. A protocol,
`benchmarks/protocols/NAME.yaml`, says what all its rows share besides:

    settings: {...}       sections of lpg_hf.training.config.Settings: the auxiliary data and the generator
    target: {...}         more of them, for the kinds that also train segmenters: the target data and the segmenter
    measure: {annotations, masks, images, split}      the boxes that `lpg-hf compare` measures on
    prepare: [...]        arguments of `python` that make data before anything else, if the protocol needs them

A row, `benchmarks/rows/TABLE/NAME.yaml`, says what is different:

    kind: generator       what is run, see `KINDS`
    label: text           its name in the tables
    protocols: [...]      each gives a line of its own
    seeds: [0]            each is a run of its own
    minutes: 8            expected, for one seed on one of two CPU cores without bfloat16
    settings: {...}       added to the protocol's, key by key; an empty dict empties
    note: text            a remark or a decision, shown in the table
    uses: TABLE/NAME      deploy: the row whose stages are used (same protocol and seed)
    compare_options: [--flip]      further arguments of `lpg-hf compare`
    generators: {...}     baseline: name as of `lpg-hf compare --generators` -> its name in the tables
    by_protocol: {...}    protocol -> any of label, seeds, minutes, settings, note, where they differ from the above

`{data}` and `{weights}` in values stand for the folders of the data and of the weights.
"""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from lpg_hf.training.parsing import merged


KINDS = {
    "baseline": "generators that need no training",
    "generator": "training/em.py for one generator without class probability",
    "em": "training/em.py, for rows that use its stages",
    "stages": "training/em.py and training/deploy.py",
    "deploy": "training/deploy.py with the stages of another row",
}
LONG_TABLES = ("deep", "deep_two", "deep_long", "deep_lpg")
TABLES = (*LONG_TABLES, "stages", "baselines", "supervision", "ablations")
_PROTOCOL_KEYS = {"settings", "target", "measure", "prepare"}
_MEASURE_KEYS = {"annotations", "masks", "images", "split"}
_SHARED_KEYS = {"label", "seeds", "minutes", "settings", "note"}
_ROW_KEYS = _SHARED_KEYS | {"kind", "protocols", "by_protocol", "uses", "generators", "compare_options"}
# A generator without a segmenter; see lpg_hf.training.config.SegmenterSettings.model.
_ONE_GENERATOR = {"run": {"num_stages": 1}, "lpg": {"stage1_class_prob": False}, "segmenter": {"model": None}}


@dataclass(frozen=True)
class Cell:
    """One run and what it measures.

    Attributes:
        table: folder of the row file.
        row: its name without suffix.
        protocol: name of the protocol.
        seed: of the training; baselines have no chance in them and ignore it.
        kind: one of `KINDS`.
        label: name of the row in the tables.
        minutes: expected.
        settings: of lpg_hf.training.config.Settings, with placeholders and without `run.dir`; empty for baselines.
        measure: of the protocol, with placeholders.
        prepare: the same.
        num_threads: CPU threads of each command; None: all cores.
        generators: baseline: name -> label.
        uses: deploy: `TABLE/NAME` of the row whose stages are used, or None.
        used_configuration: of that cell, without what it measures.
        compare_options: further arguments of `lpg-hf compare`.
        note: for the table.
    """

    table: str
    row: str
    protocol: str
    seed: int
    kind: str
    label: str
    minutes: float
    settings: dict
    measure: dict
    prepare: tuple[str, ...] = ()
    num_threads: int | None = None
    generators: dict = field(default_factory=dict)
    uses: str | None = None
    used_configuration: dict | None = None
    compare_options: tuple[str, ...] = ()
    note: str = ""

    @property
    def line(self) -> str:
        """What the seeds of a row have in common: a line of a table."""
        return f"{self.table}/{self.row}/{self.protocol}"

    @property
    def name(self) -> str:
        """The folder of the cell below the runs."""
        return f"{self.line}/seed{self.seed}"

    @property
    def result(self) -> str:
        """The folder of the cell below the results: runs of hours in `bench`, those of minutes in `shallow`."""
        return f"{'bench' if self.table in LONG_TABLES else 'shallow'}/{self.name}"

    @property
    def used(self) -> str | None:
        """Name of the cell whose stages are used."""
        return None if self.uses is None else f"{self.uses}/{self.protocol}/seed{self.seed}"

    @property
    def takes_labels(self) -> bool:
        """Whether it trains on label maps, which another row has written."""
        return self.settings.get("run", {}).get("labels", "").startswith("folder:")

    @property
    def num_stages(self) -> int:
        return self.settings.get("run", {}).get("num_stages", 3)

    @property
    def mode(self) -> str:
        """Supervision of the target."""
        return self.settings.get("run", {}).get("mode", "weak")

    @property
    def configuration(self) -> dict:
        """What the result depends on, fit for json; labels, notes and the places of data and weights do not matter."""
        options = {"compare_options": list(self.compare_options)} if self.compare_options else {}
        return options | {
            "kind": self.kind,
            "settings": self.settings,
            "measure": self.measure,
            "prepare": list(self.prepare),
            "generators": list(self.generators),
            "uses": self.used_configuration,
        }


def read_cells(definitions: Path) -> list[Cell]:
    """All cells, a row whose stages or label maps are used before the rows that use them.

    Args:
        definitions: folder with `protocols` and `rows`.

    Raises:
        ValueError: an unknown or missing key, kind, protocol, table or used row; the message names the file.
    """
    common = _read_yaml(definitions / "common.yaml", {"settings", "target"}, required={"settings", "target"})
    protocols = {
        path.stem: _read_protocol(path, common) for path in sorted((definitions / "protocols").glob("*.yaml"))
    }
    cells = []
    for path in sorted((definitions / "rows").glob("*/*.yaml"), key=_place):
        if path.parent.name not in TABLES:
            raise ValueError(f"{path} is in no table that is rendered; the folders of rows are {', '.join(TABLES)}.")
        cells += _row_cells(path, protocols)
    of_name = {cell.name: cell for cell in cells}
    for number, cell in enumerate(cells):
        if cell.used in of_name:
            cells[number] = replace(cell, used_configuration=as_used(of_name[cell.used].configuration))
        elif cell.used is not None:
            raise ValueError(
                f"row {cell.table}/{cell.row} uses {cell.used}, which no row file gives. Correct `uses`, or add the "
                "protocol and the seed to the used row."
            )
    return sorted(cells, key=lambda cell: (cell.takes_labels, cell.uses is not None))


def select(cells: list[Cell], wanted: list[str], seed: int | None = None) -> list[Cell]:
    """The cells whose name begins with one of the wanted paths (TABLE[/ROW[/PROTOCOL]]); no path means all.

    Raises:
        ValueError: a path that no cell has, or a seed that none of the chosen has.
    """
    for path in wanted:
        if not any(_within(cell, path) for cell in cells):
            raise ValueError(f"there is no row {path}; `python benchmarks/tables.py list` shows all.")
    chosen = [cell for cell in cells if not wanted or any(_within(cell, path) for path in wanted)]
    of_seed = [cell for cell in chosen if seed is None or cell.seed == seed]
    if chosen and not of_seed:
        raise ValueError(f"none of the chosen rows has the seed {seed}; `python benchmarks/tables.py list` shows all.")
    return of_seed


def expand(value: Any, places: dict[str, str]) -> Any:
    """The value with its placeholders replaced, in lists and dicts too.

    Args:
        places: name of a placeholder -> folder.
    """
    if isinstance(value, str):
        for name, folder in places.items():
            value = value.replace("{" + name + "}", folder)
        return value
    if isinstance(value, dict):
        return {key: expand(item, places) for key, item in value.items()}
    return [expand(item, places) for item in value] if isinstance(value, (list, tuple)) else value


def differences(before: dict, now: dict) -> list[str]:
    """What differs between two configurations, as `settings.lpg.steps: 225 then, 100 now`."""
    found = []
    for key in sorted(set(before) | set(now)):
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += [f"{key}.{text}" for text in differences(old, new)]
        elif old != new:
            found.append(f"{key}: {old!r} then, {new!r} now")
    return found


def as_used(configuration: dict) -> dict:
    """What the stages of a row depend on: what else is measured in that row does not matter."""
    settings = configuration.get("settings", {})
    run = {name: value for name, value in settings.get("run", {}).items() if name != "measure"}
    return configuration | {"settings": settings | {"run": run}}


def json_like(value: dict) -> dict:
    """The value as it comes back from a json file."""
    return json.loads(json.dumps(value))


def _within(cell: Cell, path: str) -> bool:
    return f"{cell.name}/".startswith(path.strip("/") + "/")


def _place(path: Path) -> tuple[int, bool, str]:
    """Rows stand in the order of the tables; the row that the others are compared with is the first of its table."""
    table = path.parent.name
    number = TABLES.index(table) if table in TABLES else len(TABLES)
    return number, path.stem not in ("base", "squeezenet", "weak"), path.stem


def _read_protocol(path: Path, common: dict) -> dict:
    protocol = _read_yaml(path, _PROTOCOL_KEYS, required={"settings", "target", "measure"})
    _check_keys(protocol["measure"], _MEASURE_KEYS, {"annotations", "masks"}, f"measure of {path}")
    return protocol | {key: merged(common[key], protocol[key]) for key in ("settings", "target")}


def _row_cells(path: Path, protocols: dict[str, dict]) -> list[Cell]:
    row = _read_yaml(path, _ROW_KEYS, required={"kind", "label", "protocols", "minutes"})
    _check_row(path, row, protocols)
    cells = []
    for name in row["protocols"]:
        here, protocol = row.get("by_protocol", {}).get(name, {}), protocols[name]
        described = row | here | {"settings": merged(row.get("settings", {}), here.get("settings", {}))}
        cells += [_cell(path, described, protocol, name, seed) for seed in described.get("seeds", [0])]
    return cells


def _check_row(path: Path, row: dict, protocols: dict[str, dict]) -> None:
    """Raises ValueError for a value of a row that no other fits."""
    if row["kind"] not in KINDS:
        raise ValueError(f"{path}: kind {row['kind']!r} is unknown. Choose one of {', '.join(KINDS)}.")
    special = row.get("by_protocol", {})
    unknown = sorted((set(row["protocols"]) - set(protocols)) | (set(special) - set(row["protocols"])))
    if unknown:
        raise ValueError(f"{path}: unknown protocol {', '.join(unknown)}. There are {', '.join(protocols)}.")
    for name, values in special.items():
        _check_keys(values, _SHARED_KEYS, set(), f"by_protocol.{name} of {path}")
    if (row["kind"] == "baseline") != ("generators" in row):
        raise ValueError(f"{path}: `generators` belongs to the kind baseline, which needs it.")
    if row["kind"] != "deploy" and "uses" in row:
        raise ValueError(f"{path}: `uses` belongs to the kind deploy, but the kind is {row['kind']}.")


def _cell(path: Path, row: dict, protocol: dict, protocol_name: str, seed: int) -> Cell:
    settings, changes = {}, merged(row["settings"], {"run": {"seed": seed}})
    if row["kind"] == "generator":
        settings = merged(merged(protocol["settings"], changes), _ONE_GENERATOR)
    elif row["kind"] != "baseline":
        settings = merged(merged(protocol["settings"], protocol["target"]), changes)
    return Cell(
        table=path.parent.name,
        row=path.stem,
        protocol=protocol_name,
        seed=seed,
        kind=row["kind"],
        label=row["label"],
        minutes=row["minutes"],
        settings=settings,
        measure=protocol["measure"],
        prepare=tuple(protocol.get("prepare", ())),
        num_threads=merged(protocol["settings"], changes).get("run", {}).get("num_threads"),
        generators=row.get("generators", {}),
        uses=row.get("uses"),
        compare_options=tuple(row.get("compare_options", ())),
        note=row.get("note", ""),
    )


def _read_yaml(path: Path, known: set[str], required: set[str]) -> dict:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from error
    _check_keys(content, known, required, str(path))
    return content


def _check_keys(content: object, known: set[str], required: set[str], where: str) -> None:
    if not isinstance(content, dict):
        raise ValueError(f"{where} does not hold `name: value` lines.")
    for problem, keys in (("unknown", set(content) - known), ("missing", required - set(content))):
        if keys:
            raise ValueError(
                f"{where}: {problem} key {', '.join(sorted(map(str, keys)))}. Known: {', '.join(sorted(known))}."
            )
