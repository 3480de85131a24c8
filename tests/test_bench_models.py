"""The benchmark of networks: its table, and a wrong name."""

from lsdali import bench_models


def test_table(capsys):
    ways = ["eager, contiguous", "eager, channels_last"]
    assert bench_models.main(["lenet", "--steps", "1", "--reps", "2", "--batch", "2", "--ways", *ways]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("lenet ")
    assert line.count("(") == 2


def test_unknown_name(capsys):
    assert bench_models.main(["resnet2x"]) == 2
    assert capsys.readouterr().err.startswith("error: there is no model 'resnet2x'; did you mean")


def test_sizes():
    assert [bench_models.image_size(n) for n in ("resnet20", "resnet50", "timm/inception_v4")] == [32, 224, 299]
