"""Where a pipeline's parts are from: its front door cuts the model again, and finds that they are its parts.

A requirement of lineage (`lineage.requirement`), the first word of the front door's command, asks for that. After the
words that every front door has (`document.command`) then follow the plan and the model's path in the vault. So it is
measured of which model, made how, the parts must be, and that the front door has seen to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

from strongroom.crypto import digest
from strongroom.errors import FormatError, IntegrityError
from strongroom.lineage.requirement import LineageReader, Requirement
from strongroom.serve.memory import give_back
from strongroom.serve.pipeline.document import Pipeline
from strongroom.serve.plan.document import Plan
from strongroom.serve.weights import inline_weights
from strongroom.vault.vault import Vault

MAX_PLAN: Final = 1 << 18  # of a plan that is a word of a command


@dataclass(frozen=True)
class Origin:
    """What a front door is to find its parts in.

    Attributes:
        path: of the model in the vault.
    """

    requirement: Requirement
    plan: Plan
    path: str

    def to_words(self) -> tuple[str, str]:
        """The last words of the command. Raises FormatError: the plan is too long for one."""
        text = self.plan.to_bytes().decode()
        if len(text) > MAX_PLAN:
            raise FormatError(
                f"plan: {len(text)} bytes, wanted at most {MAX_PLAN} with lineage", hint="a plan of fewer stages"
            )
        return text, self.path

    @classmethod
    def of_words(cls, requirement: Requirement, words: Sequence[str]) -> Origin:
        """What `to_words` gave. Raises FormatError: it did not."""
        if len(words) != 2:
            raise FormatError("command: wanted a plan and the path of a model, as lineage is required")
        return cls(requirement, Plan.parse(words[0].encode()), words[1])

    def read(self, vault: Vault) -> bytes:
        """The model, with all its weights, whose lineage is as required.

        Raises:
            AttestationError, TamperedError: it is not, of the model or of a file with weights of it.
            ModelFormatError: as `inline_weights`.
        """
        read = LineageReader(self.requirement, vault.read_bytes)
        folder = PurePosixPath(self.path).parent
        return inline_weights(read(self.path), lambda name: read(str(folder / name)))

    def check(self, pipeline: Pipeline, model: bytes) -> None:
        """Pass a pipeline of that model's parts, cut by that plan.

        Raises:
            IntegrityError: it is another's.
            StrongroomError: the model cannot be cut so.
        """
        from strongroom.serve.pipeline.cut import cut

        if self.plan.digest != pipeline.plan:
            raise IntegrityError(f"plan: got {self.plan.digest[:12]}, wanted {pipeline.plan[:12]}, which was measured")
        pieces = cut(model, self.plan)
        if len(pieces.models) != len(pipeline.parts):
            raise IntegrityError(f"pipeline: got {len(pipeline.parts)} parts, wanted {len(pieces.models)} by its plan")
        policies = tuple(part.policy for part in pipeline.parts)
        ours = pieces.pipeline(
            pipeline.name, front=pipeline.front, policies=policies, delay=pipeline.delay, tick=pipeline.tick
        )
        for number, (part, found) in enumerate(zip(pipeline.parts, pieces.models, strict=True), 1):
            if digest(found).hex() != part.digest:
                raise IntegrityError(f"part {number}: is none of the model whose lineage was checked, cut by this plan")
        if ours != pipeline:
            raise IntegrityError("pipeline: is not of the model whose lineage was checked, cut by this plan")
        del pieces
        give_back()
