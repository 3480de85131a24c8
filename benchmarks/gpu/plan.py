"""What a session asks of a GPU, the questions that teach most first."""

import sys
from collections.abc import Sequence

from benchmarks.gpu.session import ROOT, Session, Step

PYTHON = (sys.executable, "-W", "ignore", "-m")
BENCH = (*PYTHON, "lsdali", "bench")
FOUND = ("--json", "FOUND")  # where the session looks
METHODS = ("zls", "kd", "ols", "pskd", "pskd_topk", "bake", "cskd", "zls_soft", "exits", "joint")


def steps_of(session: Session) -> list[Step]:
    """Return the steps in order."""
    session.out.mkdir(parents=True, exist_ok=True)
    return [*first_steps(session), *later_steps(session)]


def first_steps(session: Session) -> list[Step]:
    """Return what shows whether it is right, and how fast it is as users start it."""
    small, ce = session.rehearse, session.recipe("ce", {"name": "ce"})
    tests = ("tests/optim/test_precision.py", "-k", "overflow") if small else ("-m", "gpu", "tests")
    probes = (*PYTHON, "benchmarks.gpu.probes", str(session.data), "FOUND")
    train = (*BENCH, "train", ce, *counts(session), *turns(session), "--compare", *FOUND)
    recipes = [str(ROOT / f"recipes/digits/{name}.yaml") for name in (METHODS[:1] if small else METHODS)]
    reps = ("--reps", "1", "--warmup", "0") if small else ("--reps", "15")
    methods = (*BENCH, "methods", *recipes, *shape(small), *reps)
    after = 6.0 if small else 25.0
    return [
        Step("facts", "what is installed, and what it can do", 60, ((*PYTHON, "lsdali", "env"),)),
        Step("probes", "overflow, decoders, lifetimes, waits of every method", 240, (probes,)),
        Step("tests", "the tests that need a GPU", 300, ((*PYTHON, "pytest", "-q", "-x", *tests),)),
        Step("train", "real images against made-up ones, and others' loops", 300, (train,)),
        Step("methods", "each method against cross-entropy", 180, (methods,)),
        Step("whole", "the users' command, killed and continued", 240, whole(session), kill_first_after=after),
    ]


def later_steps(session: Session) -> list[Step]:
    """Return what shows where time and memory go."""
    small, ce, few = session.rehearse, session.recipe("ce", {"name": "ce"}), turns(session)
    kinds = ("bf16",) if small else ("fp32", "tf32", "bf16", "fp16")
    step = (*BENCH, "step", *shape(small), *few)
    compiled = () if small else ("--compile", "default", "reduce-overhead")
    loads = ((1, None),) if small else ((4, None), (8, None), (16, None), (8, 0.5), (8, 0.9))
    decoder = tuple((*BENCH, "train", ce, *loading(*load), *counts(session), "--turns", "1", *FOUND) for load in loads)
    batches = tuple(
        (*step, "--batch", str(batch), "--precision", "bf16", *compiled, *FOUND)
        for batch in ((4,) if small else (32, 64, 128, 512))
    )
    once = ("--turns", "1", *FOUND)
    return [
        Step("step", "precisions, and a plain loop", 120, ((*step, "--precision", *kinds, "--compare", *FOUND),)),
        Step("batches", "is the host the limit at small batches? Compiled?", 240, batches),
        Step("decoder", "threads, and the share of the JPEG engines", 240, decoder),
        Step("eval", "an evaluation against its forward passes", 60, ((*BENCH, "eval", ce, *few, *FOUND),)),
        Step("save", "what a checkpoint costs", 60, ((*BENCH, "save", ce, *few, *FOUND),)),
        Step("memory", "memory of host and device", 60, ((*BENCH, "memory", ce, *once),)),
        Step("start", "seconds until something happens", 120, ((*BENCH, "start", ce, *once),)),
    ]


def shape(small: bool) -> Sequence[str]:
    return ("--shape", "cifar", "--batch", "4") if small else ("--shape", "imagenet")


def turns(session: Session) -> Sequence[str]:
    return ("--turns", "1") if session.rehearse else ("--turns", "3")


def counts(session: Session) -> Sequence[str]:
    return ("--steps", "2", "--warmup", "1") if session.rehearse else ("--steps", "60", "--warmup", "10")


def loading(threads: int, load: float | None) -> Sequence[str]:
    return (f"data.threads={threads}", *(() if load is None else (f"data.hw_decoder_load={load}",)))


def whole(session: Session) -> tuple[tuple[str, ...], ...]:
    """Return a run of PS-KD that is killed, the same again to its end, and one in fp16 where there is a GPU."""
    torchrun = ("torch.distributed.run", "--standalone", "--nproc_per_node", "1")
    train = (*PYTHON, *torchrun, "-m", "lsdali.train")
    often = {"save": {"every_steps": 2 if session.rehearse else 20}}
    method = {"name": "pskd", "history": "dense16"}
    first = session.recipe("pskd", method, **often)
    runs = [first, first]
    if not session.rehearse:
        runs.append(session.recipe("pskd_fp16", method, precision="fp16", **often))
    return tuple((*train, recipe) for recipe in runs)
