"""The typed tree of a sweep file."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator
from typing_extensions import Self

from lsdali.config import Config, PathText
from lsdali.metric_names import METRICS


def texts(value: Any) -> Any:
    """Map one label or a list of them, numbers too -> a tuple of texts."""
    many = value if isinstance(value, (list, tuple)) else [value]
    return tuple(str(one) if isinstance(one, (int, float)) else one for one in many)


def text_keys(value: Any) -> Any:
    """Map a mapping whose keys YAML may have read as numbers -> the same with texts."""
    return {str(k): v for k, v in value.items()} if isinstance(value, Mapping) else value


Overrides = dict[str, Any]
Labels = Annotated[tuple[str, ...], BeforeValidator(texts)]
When = dict[str, Labels]
Names = Annotated[tuple[str, ...], Field(strict=False)]
Seeds = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(strict=False, min_length=1)]


class Axis(Config):
    """One thing that varies: named points, or one key with a list of values."""

    points: Annotated[dict[str, Overrides], BeforeValidator(text_keys)] | None = None
    """The overrides of each point by its label, for several keys that go together. The key `recipe` names another
    file."""
    key: str | None = None
    """The recipe's key that `values` are for, such as method.temperature."""
    values: Annotated[tuple[Any, ...], Field(strict=False, min_length=1)] | None = None
    """Its values; each is its own label."""

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        given = [field for field in ("points", "key", "values") if getattr(self, field) is not None]
        if given not in (["points"], ["key", "values"]) or self.points == {}:
            raise ValueError("give either `points`, or `key` and `values`")
        if twice := [value for k, value in enumerate(self.values or ()) if value in (self.values or ())[:k]]:
            raise ValueError(f"the value {twice[0]} is given twice")
        return self

    @property
    def labelled(self) -> dict[str, Overrides]:
        """The overrides of each label, in order."""
        if self.points is not None:
            return self.points
        return {str(value): {str(self.key): value} for value in self.values or ()}


class SweepRule(Config):
    """Further overrides of some cells."""

    when: When
    """The cells: for some axes a label or a list of labels; {} for all cells."""
    set: Overrides
    """Their overrides, applied after those of the axes."""


class Evaluate(Config):
    """An evaluation of each finished run by `lsdali evaluate`; its figures are `<name>.top1` and so on."""

    set: Overrides = {}
    """Overrides of the data part; data.holdout: null is the official test data of a run that held out a part."""
    checkpoint: Literal["best", "last"] = "best"
    """Which checkpoint of the run."""
    temperature: Literal["half", "held_out", "same", "ibls"] | None = None
    """Also fit a temperature, in one of the ways of `lsdali evaluate --temperature`: the figures with it are
    `<name>.scaled.top1` and so on, and `<name>.temperature` is its value."""
    bins: Annotated[
        tuple[Annotated[str, Field(pattern=r"^(width|mass|ibls|pskd):[\d.]+$")], ...], Field(strict=False)
    ] = ()
    """Also the ECE, MCE and ACE with these bins, as `lsdali evaluate --bins` has them: width:10 gives the figures
    `<name>.ece width:10`, `<name>.mce width:10` and `<name>.ace width:10`."""
    members: int | None = Field(None, ge=1)
    """Evaluate so many checkpoints of the run, evenly spaced over its steps up to the last, as an ensemble.
    `save.every_epochs` and `save.keep` must have kept them."""

    @model_validator(mode="after")
    def _last_is_implied(self) -> Self:
        if self.members is not None and "checkpoint" in self.model_fields_set:
            raise ValueError("`members` are checkpoints of their own; leave out `checkpoint`")
        return self


class SweepSelect(Config):
    """One run out of several: the best by a figure."""

    over: Names
    """The axes that are searched; every seed chooses for itself."""
    by: str
    """The figure that decides, such as best.nll: the greatest of top1 and top5, else the least. Runs that hold out
    a part of the training data (data.holdout) decide on that part."""


class Stage(Config):
    """Runs of one kind: the grid of all axes, times the seeds."""

    recipe: PathText | None = None
    """The recipe that all runs start from, a path from the sweep file's folder; a point may name another."""
    set: Overrides = {}
    """Overrides of all runs: `dotted.key: value`, as on the command line; a mapping replaces the whole part. A text
    may hold a placeholder for an earlier stage: {teacher} is the folder of its run with the same labels and seed, and
    {teacher:test.temperature} a figure of that run. An axis on which that stage has one point needs no equal label. The
    text {seed} is the seed itself."""
    axes: dict[str, Axis] = {}
    """What varies. The labels name run folders and the table's rows and columns."""
    rules: Annotated[tuple[SweepRule, ...], Field(strict=False)] = ()
    """Exceptions, in order."""
    skip: Annotated[tuple[When, ...], Field(strict=False)] = ()
    """Cells to leave out, each given by labels of some axes."""
    seeds: Seeds | None = None
    """Seeds of this stage; null: those of the sweep."""
    evaluate: dict[str, Evaluate] = {}
    """Evaluations of a finished run, by names that you choose."""
    select: SweepSelect | None = None
    """Choose among the runs of some axes; tables and later stages see the chosen ones."""


class Figure(Config):
    """A figure that a table shows for each run."""

    of: str
    """<weights or evaluation>.<metric>: last.top1, best.nll, ema.best.top1, or `test.ece` of the evaluation `test`."""
    error: bool = False
    """Show 100 - x: the error instead of the accuracy."""
    scale: float = Field(1.0, gt=0)
    """Factor on the value; 0.01 makes a fraction of a percentage."""
    digits: int = Field(2, ge=0)
    """Decimals."""

    @property
    def rises(self) -> bool:
        """Whether more is better."""
        return rises(self.of) and not self.error


def rises(figure: str) -> bool:
    """Return whether more is better of `best.top1` and the like."""
    metric = figure.rsplit(".", 1)[-1]
    return metric in METRICS and METRICS[metric].higher


class Published(Config):
    """Numbers that others have published, shown beside ours."""

    source: str
    """Paper and table, or repository and file."""
    by: Names
    """The axes whose labels nest in `values`, outermost first."""
    figures: Names | None = None
    """Which of the table's figures each list in `values` holds; null: all of them."""
    values: dict[Any, Any]
    """Labels of the first axis, in each the labels of the next, at the end a list with one entry a figure: a number, a
    text such as 77.38 ± 0.32, or null."""

    def entries(self) -> Iterator[tuple[dict[str, str], list[Any]]]:
        """Yield (labels by axis, one entry a figure) of each list.

        Raises ValueError if the tree has another depth.
        """
        yield from self._walk(self.values, {})

    def _walk(self, node: Any, labels: dict[str, str]) -> Iterator[tuple[dict[str, str], list[Any]]]:
        if len(labels) == len(self.by):
            if not isinstance(node, list):
                raise ValueError(f"published: {' / '.join(labels.values())} must hold a list, one entry a figure")
            yield labels, node
            return
        axis = self.by[len(labels)]
        if not isinstance(node, Mapping):
            raise ValueError(f"published: {' / '.join(labels.values())} must hold a mapping by the labels of {axis}")
        for label, below in node.items():
            yield from self._walk(below, {**labels, axis: str(label)})


class Table(Config):
    """One table: the mean and standard deviation over the seeds of each cell."""

    stages: Names
    """The stages whose runs it shows."""
    rows: Names
    """Axes on the left; the first one divides the table into groups."""
    columns: Names = ()
    """Axes on top."""
    figures: Annotated[dict[str, Figure], Field(min_length=1)]
    """Figures of each cell, by their headings."""
    best_of: Names = ()
    """Mark the best along these axes, all else equal, if its mean lies further from every other's than their two
    standard deviations together; it takes two seeds."""
    published: Annotated[tuple[Published, ...], Field(strict=False)] = ()
    """Numbers to show beside ours."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        axes = (*self.rows, *self.columns)
        if stray := [axis for axis in self.best_of if axis not in axes]:
            raise ValueError(f"best_of: {stray[0]} is neither in rows nor in columns")
        for part in self.published:
            wanted = part.figures or tuple(self.figures)
            if stray := [name for name in wanted if name not in self.figures]:
                raise ValueError(f"published.figures: {stray[0]} is no figure of the table")
            for labels, values in part.entries():
                if len(values) != len(wanted):
                    raise ValueError(
                        f"published: {' / '.join(labels.values())} has {len(values)} entries for {len(wanted)} figures"
                    )
        return self


class Sweep(Config):
    """Many runs, and the tables made from them."""

    title: str = ""
    """A heading for the tables."""
    folder: PathText | None = None
    """Where run folders and tables go; null: runs/<name of the sweep file>."""
    seeds: Seeds = (0,)
    """Each cell is trained once with each of them."""
    stages: Annotated[dict[str, Stage], Field(min_length=1)]
    """By name, in order: a stage may use runs of earlier ones."""
    tables: dict[str, Table] = {}
    """By their captions."""
