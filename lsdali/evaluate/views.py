"""Several views of each image: the mean of the network's softmax outputs over flip_views or crops of it."""

from collections.abc import Callable
from functools import partial

from torch import Tensor

from lsdali.errors import UserError
from lsdali.posthoc import ensemble
from lsdali.recipe import Recipe

Views = Callable[[Tensor], list[Tensor]]


def flip_views(images: Tensor) -> list[Tensor]:
    """Map [B, C, H, W] -> each image, and its mirror image."""
    return [images, images.flip(3)]


def crops(images: Tensor, size: int) -> list[Tensor]:
    """Map [B, C, S, S] -> the four corners and the middle, `size` pixels a side: those of torchvision's FiveCrop."""
    end = images.shape[2] - size
    middle = round(end / 2)
    corners = [(0, 0), (0, end), (end, 0), (end, end), (middle, middle)]
    return [images[:, :, y : y + size, x : x + size] for y, x in corners]


def ten(images: Tensor, size: int) -> list[Tensor]:
    """Return the five crops and their mirror images."""
    return [view for crop in crops(images, size) for view in flip_views(crop)]


VIEWS = {
    "flip": "each image and its mirror image",
    "five": "the corners and the middle of the central square",
    "ten": "the corners and the middle of the central square, and their mirror images",
}


def choose(name: str, recipe: Recipe) -> tuple[Views, Recipe]:
    """Return the views by name, and the recipe that loads images large enough for them.

    Raises UserError if the recipe's images are no larger than what the network sees.
    """
    if name == "flip":
        return flip_views, recipe
    views = partial(crops if name == "five" else ten, size=recipe.data.eval.size)
    return views, larger(recipe, f"--views {name}", ", or use --views flip")


def larger(recipe: Recipe, option: str, instead: str = "") -> Recipe:
    """Return the recipe, loading the central square of data.eval.resize pixels, from which the option cuts crops.

    Raises UserError if that is no larger than what the network sees.
    """
    window = recipe.data.eval
    if window.resize == window.size:
        raise UserError(
            f"{option} crops the images, but data.eval.resize and data.eval.size are both {window.size}: "
            f"add data.eval.resize={window.size * 8 // 7}{instead}"
        )
    whole = window.model_copy(update={"size": window.resize})
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"eval": whole})})


def averaged(network: Callable[[Tensor], Tensor], views: Views) -> Callable[[Tensor], Tensor]:
    """Return the network, as one that returns the logarithm of its mean softmax output over the views, [B, K] fp32."""
    return lambda images: ensemble([network(view) for view in views(images)]).float()
