"""What the loader does on a GPU, as far as it shows without one."""

import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import nvidia.dali
import pytest
import torch
from nvidia.dali import fn, types
from nvidia.dali.data_node import DataNode

from lsdali import dist
from lsdali.data.index.index import open_index
from lsdali.data.pipeline import decoder
from lsdali.data.pipeline.dali_pipeline import DaliPipeline
from lsdali.data.pipeline.decoder import DecoderReport, decoder_report
from lsdali.data.pipeline.graph import GraphSpec, padded_graph, resized_graph
from lsdali.data.sampling.augment.erasing import RandomErasing
from lsdali.errors import UserError
from tests.made_up_cuda import CUDA, Event, made_up_cuda

ERASE = {"cpu": {"float16", "float", "uint8"}, "gpu": {"float", "uint8"}}  # among those of images


def spec(**more: Any) -> GraphSpec:
    values = {"batch": 8, "threads": 1, "prefetch": 2, "device_id": None, "half": False, "size": 32}
    values |= {"mean": (0.5,) * 3, "std": (0.2,) * 3, "largest": 250_000}
    return GraphSpec(**(values | more))


def test_the_installed_dali_erases_these_types() -> None:
    """By the names of the compiled templates."""
    binary = (Path(nvidia.dali.__file__).parent / "libdali_operators.so").read_bytes()
    mangled = {"uint8": rb"h", "float": rb"f", "float16": rb"[A-Z0-9_]*7float16"}
    for place, names in ERASE.items():
        prefix = b"EraseImpl%sI" % place.title().encode()
        assert {name for name, kind in mangled.items() if re.search(prefix + kind, binary)} == names


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("late", [False, True])
def test_nothing_is_erased_in_16_bit(half: bool, late: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    augment = (RandomErasing(probability=1.0),) if late else ()
    used = []
    for name in ("crop_mirror_normalize", "erase", "cast"):

        def recorded(call: Any, name: str, *inputs: Any, **options: Any) -> Any:
            used.append((name, options.get("dtype")))
            return call(*inputs, **options)

        monkeypatch.setattr(fn, name, partial(recorded, getattr(fn, name), name))
    resized_graph(lambda info: (), spec(device_id=0, half=half, augment=augment))
    expected = [("crop_mirror_normalize", types.FLOAT16 if half and not late else types.FLOAT)]
    expected += [("erase", None)] * late + [("cast", types.FLOAT16)] * (late and half)
    assert used == expected


@pytest.mark.parametrize("graph", [resized_graph, padded_graph])
@pytest.mark.parametrize(
    ("device", "on_cpu", "decodes", "moves"), [(0, True, "cpu", 1), (0, False, "mixed", 0), (None, True, "cpu", 0)]
)
def test_decoding_on_the_cpu_beside_a_gpu(
    graph: Any, device: int | None, on_cpu: bool, decodes: str, moves: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    used, moved = [], []
    for name in ("image", "image_slice"):

        def recorded(call: Any, *inputs: Any, **options: Any) -> Any:
            used.append(options["device"])
            return call(*inputs, **options)

        monkeypatch.setattr(fn.decoders, name, partial(recorded, getattr(fn.decoders, name)))
    gpu = DataNode.gpu
    monkeypatch.setattr(DataNode, "gpu", lambda node: moved.append(node) or gpu(node))
    graph(lambda info: (), spec(device_id=device, on_cpu=on_cpu))
    assert used == [decodes]
    assert len(moved) == moves


class Tensor:
    """One of DALI's on a GPU."""

    def as_tensor(self) -> "Tensor":
        return self

    def shape(self) -> list[int]:
        return [2, 4, 4, 3]

    def copy_to_external(self, to: Any, stream: Any, *, non_blocking: bool) -> None:
        assert non_blocking


def test_buffers_of_dali_are_held_until_their_copy_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """DALI reuses what it frees in the order of its own streams, which know nothing of torch's."""
    passed = False

    class Late(Event):
        def query(self) -> bool:
            return passed

    class Pipe:
        def run(self, stream: Any) -> tuple[Any, Any]:
            return Tensor(), type("Index", (), {"as_array": lambda self: np.array([[3], [5]])})()

    class Stream:
        cuda_stream = 0

    with made_up_cuda():
        monkeypatch.setattr(torch.cuda, "Event", Late)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())
        monkeypatch.setattr(torch.Tensor, "data_ptr", lambda x: 1)
        pipeline = DaliPipeline(None, None, spec(device_id=0, half=True), lambda step: ())  # type: ignore[arg-type]
        pipeline._pipe = Pipe()
        for held in (1, 2, 3):
            images, index = pipeline.run()
            assert len(pipeline._held) == held
        passed = True
        pipeline.run()
        assert len(pipeline._held) == 1
    assert (images.dtype, images.shape, images.device) == (torch.float16, (2, 3, 4, 4), CUDA)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert index.tolist() == [3, 5]


def test_whole_images_cut_are_the_windows(tree: Any, plain: Any) -> None:
    config = plain(tree(side=80))
    index = open_index(config, "train")
    rows = np.arange(8)
    start, shape = np.full((8, 2), 5, np.int32), np.full((8, 2), 64, np.int32)
    arrays = index.images(rows), rows, start, shape, np.zeros((8, 2), np.float32), shape.astype(np.float32)
    window, whole = (
        np.array(resized_graph(lambda info: arrays, spec(way=way)).run()[0].as_array()) for way in ("window", "whole")
    )
    assert window.std() > 0.1
    assert np.abs(window - whole).max() * 0.2 * 255 <= 3, "in grey levels"


def test_the_decoder_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    report = decoder_report()
    assert report.dali == nvidia.dali.__version__
    assert report.nvjpeg is None or report.nvjpeg[0] == report.cuda
    assert report.way == ("window" if (report.nvjpeg or (0,)) >= (13, 2) else "whole")
    for nvjpeg, way in (((12, 4, 0), "whole"), ((13, 1, 9), "whole"), ((13, 2, 0), "window"), (None, "whole")):
        made_up = DecoderReport("2.4.0", 13, "0.9.0", nvjpeg)
        assert made_up.way == way
        assert ("lsdali[cuda13]" in made_up.describe()) == (way == "whole")
    monkeypatch.setattr(decoder, "PACKAGED", {})
    assert decoder.nvjpeg_version(99) is None


@pytest.mark.parametrize(
    ("count", "local", "torchrun", "own"), [(8, 3, True, 3), (1, 3, False, 0), (1, 3, True, None), (2, 3, False, None)]
)
def test_each_process_takes_its_gpu(
    count: int, local: int, torchrun: bool, own: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.distributed, "is_torchelastic_launched", lambda: torchrun)
    monkeypatch.setenv("LOCAL_RANK", str(local))
    if own is None:
        with pytest.raises(UserError, match=f"but {count} GPUs: start torchrun with --nproc_per_node {count}"):
            dist.own_device()
    else:
        assert dist.own_device() == torch.device("cuda", own)
