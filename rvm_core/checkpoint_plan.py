"""Which tensor of a file is which parameter of a model, and all that is wrong with a file, for all kinds of models."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from rvm_core.checkpoint_checks import describe, match_tensors, read_parameters
from rvm_core.parameter_layout import Layout, Parameter
from rvm_core.tensor_file import CheckpointError, TensorFile, TensorHeader, printable

FORMAT_VERSION = "1"
"""Of the .safetensors layout: names, shapes and metadata. Grows when an older reader would misread a file."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """A kind of model, as its checkpoints have it."""

    title: str
    """For messages."""
    model_class: type[nn.Module]
    official: Callable[[Collection[str]], Layout]
    """The layout of the release's .npz, given all names in it."""
    own: Layout
    """That of our .safetensors."""
    optional: frozenset[str]
    """Parts of the model, by the first word of their names, that a file may lack and a reader may leave out."""
    make_config: Callable[[Mapping[str, int], Collection[str]], Any]
    """The configuration of sizes, with some of the optional parts. Raises `KeyError` for a size that is not known and
    `ValueError` for sizes that do not fit together."""
    sizes_of: Callable[[Any], dict[str, int]]
    """`make_config` the other way round."""
    make_model: Callable[[Any], nn.Module]
    """Uninitialised, from its configuration."""
    passed_over: Callable[[Collection[str]], set[str]] = lambda names: set()
    """Of all names in a release's file, those of parts that are not the model's own."""
    adjusted: Callable[[Any, Mapping[str, str]], Any] = lambda config, metadata: config
    """The configuration with what only the metadata of our .safetensors tell."""

    def layout(self, file: TensorFile) -> Layout:
        return self.official(file.headers) if file.format == "npz" else self.own


@dataclass
class Plan:
    """Which tensor of a file is which parameter, and everything that is wrong with the file."""

    family: Family
    format: str
    layout: Layout
    sizes: dict[str, int]
    parts: frozenset[str]
    """The optional parts that the file holds."""
    dtypes: tuple[str, ...]
    readable: list[Parameter] = field(default_factory=list)
    """Parameters whose shape and dtype are right."""
    problems: list[str] = field(default_factory=list)
    metadata: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, file: TensorFile, families: Sequence[Family], wanted: Sequence[Family]) -> Plan:
        """The plan for the family of which the file has the most names.

        families: all that there are; wanted: those that the caller can use, others are a problem.
        """
        counts = {id(family): _count(file, family) for family in families}
        # The first of equals wins, so that a file of nothing known counts as what is wanted.
        family = max([*wanted, *families], key=lambda family: counts[id(family)])
        layout = family.layout(file)
        foreign = family.passed_over(file.headers) if file.format == "npz" else set()
        headers = {name: header for name, header in file.headers.items() if name not in foreign}
        found = [parameter for name in headers if (parameter := layout.find(name))]
        plan = cls(
            family=family,
            format=file.format,
            layout=layout,
            sizes=layout.infer_sizes({name: header.shape for name, header in headers.items()}),
            parts=family.optional & {parameter.part for parameter in found},
            dtypes=tuple(sorted({header.dtype for header in headers.values()})),
            metadata=file.metadata,
        )
        titles = " or ".join(family.title for family in wanted)
        if not found:
            first = ", ".join(printable(name) for name in list(file.headers)[:3])
            plan.problems.append(f"none of its {len(file.headers)} tensors is a parameter of {titles}: {first}, ...")
        elif family not in wanted:
            plan.problems.append(f"kind: expected {titles}, found the parameters of {family.title}")
        else:
            plan._check(file, headers)
        return plan

    @property
    def config(self) -> Any:
        """With the optional parts that the file holds."""
        return self.config_with(self.parts)

    def config_with(self, parts: Collection[str]) -> Any:
        """With some of the optional parts."""
        return self.family.adjusted(self.family.make_config(self.sizes, parts), self.metadata)

    def counts(self) -> dict[str, int]:
        """How many numbers each part of the model has."""
        counts: dict[str, int] = {}
        for parameter in self.readable:
            size = math.prod(size or 0 for size in parameter.shape(self.sizes))
            counts[parameter.part] = counts.get(parameter.part, 0) + size
        return counts

    def read(self, file: TensorFile, without: Collection[str] = ()) -> Iterator[tuple[str, Tensor]]:
        """Names and tensors as in the state_dict, in the file's dtype; notes those that are damaged or not finite."""
        wanted = [parameter for parameter in self.readable if parameter.part not in without]
        return read_parameters(file, wanted, self.problems)

    def raise_problems(self, path: Any) -> None:
        """Raises `CheckpointError` with all that was found, if anything was."""
        if self.problems:
            title, found = self.family.title, describe(len(self.problems))
            raise CheckpointError(path, f"not a sound {title} checkpoint, {found}:", tuple(self.problems))

    def _check(self, file: TensorFile, headers: Mapping[str, TensorHeader]) -> None:
        version = file.metadata.get("format_version")
        if file.format != "npz" and version != FORMAT_VERSION:
            self.problems.append(f"metadata: expected format_version {FORMAT_VERSION!r}, found {version!r}")
        parameters = self.layout.parameters(self.sizes, without=self.family.optional - self.parts)
        self.readable, problems = match_tensors(headers, parameters, self.sizes)
        self.problems += problems
        try:
            _ = self.config
        except KeyError as error:
            self.problems.append(f"sizes: no tensor tells {error.args[0]}")
        except ValueError as error:
            self.problems.append(f"sizes: {error}")


def _count(file: TensorFile, family: Family) -> int:
    layout = family.layout(file)
    return sum(layout.find(name) is not None for name in file.headers)
