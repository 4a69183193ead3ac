"""Mixers in ONNX files: batches of any size, all patterns of gaps, NaN behind them."""

import warnings

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.studies import AGGREGATORS, FUSIONS, NUMERIC, StudyMixer
from utils.batch import Inputs

CHANNELS, VIEWS, COLUMNS = 8, 3, [NUMERIC, 3, NUMERIC]
NAMES = ("vectors", "maps", "view_mask", "view_kind", "table", "table_mask")


class Exported(nn.Module):
    """All slots in, [B, V, …], as an exported file of studies is given them."""

    def __init__(self, mixer: StudyMixer) -> None:
        super().__init__()
        self.mixer = mixer

    def forward(
        self, vectors: Tensor, maps: Tensor, view_mask: Tensor, view_kind: Tensor, table: Tensor, table_mask: Tensor
    ) -> Tensor:
        inputs = Inputs(maps.flatten(0, 1), view_mask, view_kind, table, table_mask)
        return self.mixer(vectors.flatten(0, 1), maps.flatten(0, 1), inputs)


def studies(count: int, seed: int, filling: float) -> dict[str, Tensor]:
    """Random gaps with `filling` behind them; the first study is empty."""
    random = torch.Generator().manual_seed(seed)
    mask, known = (torch.rand(count, n, generator=random) < 0.6 for n in (VIEWS, len(COLUMNS)))
    mask[0], known[0] = False, False
    vectors = torch.randn(count, VIEWS, CHANNELS, generator=random)
    maps = torch.randn(count, VIEWS, CHANNELS, 3, 4, generator=random)
    table = torch.randint(0, 4, (count, len(COLUMNS)), generator=random).float()
    vectors[~mask], maps[~mask], table[~known] = filling, filling, filling
    kinds = torch.randint(0, 2, (count, VIEWS), generator=random)
    return dict(zip(NAMES, (vectors, maps, mask, kinds, table, known), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(("aggregator", "fusion"), [*zip(AGGREGATORS, FUSIONS, strict=True)])
def test_onnx_with_gaps_in_batches_of_any_size(aggregator, fusion, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    mixer = StudyMixer(CHANNELS, 2, aggregator, 2, fusion, COLUMNS, view_width=8, table_width=8, rank=4)
    for parameter in mixer.parameters():
        nn.init.normal_(parameter, std=0.3)
    network, example = Exported(mixer).eval(), studies(3, 0, 0.0)
    path, batch = tmp_path / "mixer.onnx", torch.export.Dim("batch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            tuple(example.values()),
            path,
            input_names=list(NAMES),
            dynamo=True,
            dynamic_shapes=tuple({0: batch} for _ in NAMES),
            verbose=False,
        )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for count, seed in ((1, 1), (2, 2), (5, 3), (16, 4)):
        expected = network(*studies(count, seed, 0.0).values()).detach().numpy()
        behind_gaps = {name: x.numpy() for name, x in studies(count, seed, float("nan")).items()}
        (found,) = session.run(None, behind_gaps)
        assert found.shape == (count, CHANNELS)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
