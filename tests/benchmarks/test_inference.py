"""The three ways of the inference benchmark see the same images and give the same logits."""

import torch

from benchmarks.inference import in_memory, ways
from configs.default_config import Config
from models import HybridMedNet
from training.precision import Precision


def test_all_ways_ask_the_network_for_the_same():
    loader = in_memory(10, 4, 32, pinned=False)
    assert [len(batch) for _, batch in loader.epoch(0)] == [4, 4, 2]
    settings = ["MODEL.backbone=timm/test_resnet", "MODEL.pretrained=false", "MODEL.attention=none"]
    torch.manual_seed(0)
    model = HybridMedNet(Config.from_overrides([*settings, "MODEL.fusion_channels=8", "DATA.image_size=32"])).eval()
    bare, evaluator, predictor = ways(model, loader, Precision("cpu", None), torch.device("cpu"))
    logits = torch.cat(bare()).double()
    scores, (found, rows) = evaluator(), predictor()
    torch.testing.assert_close(torch.from_numpy(found[0]), logits)
    torch.testing.assert_close(torch.from_numpy(scores.scores), logits.sigmoid())
    assert rows.tolist() == list(range(10))
