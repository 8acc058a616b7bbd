"""The last layers of a network for other classes: rows go to the class of the same name."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from segtrain.errors import listed

State = dict[str, Tensor]
UNUSED = "n/a"
"""Torchvision's name for the numbers between 1 and 90 that COCO never gave to a class."""


class ClassMap:
    """Which class of a file is which class of the data, by name, whatever the case of its letters.

    Args:
        theirs: names in the file, in the order of its rows.
        ours: names in the data.
    """

    def __init__(self, theirs: Iterable[str], ours: Iterable[str]) -> None:
        self.theirs, self.ours = list(theirs), list(ours)
        places = {name.casefold(): index for index, name in reversed(list(enumerate(self.theirs)))}
        places.pop(UNUSED, None)
        pairs = [(index, places.get(name.casefold())) for index, name in enumerate(self.ours)]
        self.rows = {index: place for index, place in pairs if place is not None}
        """Our class index -> theirs."""

    def is_identity(self) -> bool:
        return len(self.theirs) == len(self.ours) and self.rows == {index: index for index in range(len(self.ours))}

    def transfer(self, theirs: Tensor, ours: Tensor, dims: tuple[int, ...], rows: int = 1) -> Tensor:
        """`ours`, a fresh tensor, with the entries of named classes from `theirs`; `dims` count classes.

        `rows`: entries of one class, one after the other, along a single such dimension.
        """
        result, source = ours.clone(), theirs.to(ours)
        to_rows, from_rows = torch.tensor(list(self.rows)), torch.tensor(list(self.rows.values()))
        if len(dims) == 1:
            ours_by_class, theirs_by_class = (tensor.unflatten(dims[0], (-1, rows)) for tensor in (result, source))
            ours_by_class.index_copy_(dims[0], to_rows, theirs_by_class.index_select(dims[0], from_rows))
            return result
        # A kernel from classes to classes, as in FCN's upsampling: both ends must be named.
        result[to_rows[:, None], to_rows] = source[from_rows[:, None], from_rows]
        return result

    def report(self) -> str:
        """Such as `head: 2 of 3 classes by name (background, cat), new: dog`."""
        if not self.rows:
            return f"head new (no class of the {len(self.theirs)} in the file has a name of ours)"
        named = listed(self.ours[index] for index in self.rows)
        new = [name for index, name in enumerate(self.ours) if index not in self.rows]
        rest = f", new: {listed(new)}" if new else ""
        return f"head: {len(self.rows)} of {len(self.ours)} classes by name ({named}){rest}"


def class_dims(layer: nn.Module, tensor: Tensor) -> tuple[int, ...]:
    """Dimensions of a class layer's weight or bias that count classes."""
    if tensor.ndim < 2 or not isinstance(layer, nn.ConvTranspose2d):
        return (0,)
    return (0, 1) if layer.in_channels == layer.out_channels else (1,)


def class_count(tensor: Tensor, dims: tuple[int, ...]) -> int:
    return tensor.shape[dims[-1]]


def differs_in_classes_only(theirs: Tensor, ours: Tensor, dims: tuple[int, ...]) -> bool:
    """Whether two tensors have one shape but for the number of classes, the same one in all of `dims`."""
    if theirs.ndim != ours.ndim or len({theirs.shape[dim] for dim in dims}) > 1:
        return False
    rest = [dim for dim in range(ours.ndim) if dim not in dims]
    return [theirs.shape[dim] for dim in rest] == [ours.shape[dim] for dim in rest]
