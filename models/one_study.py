"""One study whose images have gone through a network once, asked about with views and values taken away."""

from __future__ import annotations

import torch
from torch import Tensor

from models.heads import StudyHead
from models.studies.mixer import in_slots
from utils.batch import Inputs, Logits
from utils.evaluation_mode import evaluating

# Numbers of the largest tensor that is computed at a time.
_NUMBERS = 1 << 22


class OneStudy:
    """What a network says of a study under any views and any table: only what joins them is computed again.

    head: of the network, with a `study`. fused: the maps [M, C, *spatial] of the images of `inputs`, which are one
    study of V views and F columns. Everything is in evaluation mode and without gradients.
    """

    def __init__(self, head: StudyHead, fused: Tensor, inputs: Inputs) -> None:
        assert head.study is not None and inputs.studies == 1
        self.head, self.mixer, self.inputs = head, head.study, inputs
        with evaluating(head), torch.no_grad():
            # A slot for each view, so that any of them can be masked.
            self._vectors = in_slots(head.pooled(fused), inputs.view_mask)[0]
            self._fused = in_slots(fused, inputs.view_mask)[0]
            self._places = self.mixer.places_of_table(self._fused, inputs)
        views, columns = inputs.view_mask.shape[1], inputs.table.shape[1]
        width = max(self._vectors.shape[1] * views, 64 * columns, 1 if self._places is None else self._places.numel())
        self._rows_at_once = max(1, _NUMBERS // width)

    def logits(self, table: Tensor, known: Tensor, views: Tensor) -> Tensor:
        """Table [n, F], known bool [n, F], views bool [n, V] → the (fine) logits [n, K].

        Views and values that the study lacks must be masked; what lies behind a mask is not looked at.
        """
        found: list[tuple[Tensor, Tensor]] = []
        with evaluating(self.head), torch.no_grad():
            patterns, pattern_of = views.unique(dim=0, return_inverse=True)
            for number, pattern in enumerate(patterns):
                joined = self._join(pattern[None])
                for rows in (pattern_of == number).nonzero()[:, 0].split(self._rows_at_once):
                    found.append((rows, self._with_table(joined, pattern, table[rows], known[rows])))
        order = torch.cat([rows for rows, _ in found]).argsort()
        return torch.cat([logits for _, logits in found])[order]

    def view_weights(self) -> Tensor:
        """See StudyMixer: [V]."""
        with evaluating(self.head), torch.no_grad():
            return self.mixer.view_weights(self._vectors, self._fused, self.inputs)[0]

    def table_weights(self) -> Tensor | None:
        """See StudyMixer: [F], None where the fusion has no attention."""
        with evaluating(self.head), torch.no_grad():
            weights = self.mixer.table_weights(self._vectors, self._fused, self.inputs)
        return None if weights is None else weights[0]

    def _join(self, mask: Tensor) -> Tensor:
        return self.mixer.join(self._vectors, self._fused, self.inputs._replace(view_mask=mask))

    def _with_table(self, joined: Tensor, views: Tensor, table: Tensor, known: Tensor) -> Tensor:
        """joined [1, C], views [V], a table of n rows → [n, K]."""
        n = table.shape[0]
        inputs = self.inputs._replace(view_mask=views.expand(n, -1), table=table, table_mask=known)
        places = None if self._places is None else self._places.expand(n, -1, -1, -1)
        vectors = self.mixer.add_table(joined.expand(n, -1), inputs, places)
        return Logits.of(self.head.classify(vectors)).fine
