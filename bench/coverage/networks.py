"""The networks of docs/coverage.md, by name: who builds them, what they take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from . import small
from .packages import package

OWN = "hscc"  # what is in this repository needs no package


@dataclass(frozen=True)
class Network:
    """How to build a network with random weights.

    Args:
        package: that ``build`` imports from, or :data:`OWN`.
        kind: heading of the table that it stands in.
        size, channels: of its images; small ones, as only time depends on it.
        inputs: number of images that a call takes.
        quick: whether it is checked in every test run, not only by ``make coverage``.
        family: how the names of torchvision's networks begin that are built alike; several with commas.
    """

    build: Callable[[], nn.Module]
    package: str
    kind: str
    size: int = 64
    channels: int = 3
    inputs: int = 1
    quick: bool = False
    family: str | None = None


class Heads(nn.Module):
    """A detector up to its boxes: the backbone's maps and what its head makes of them."""

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, x: Tensor) -> object:
        return self.head([*self.backbone(x).values()])


def _torchvision(path: str, **options: object) -> Callable[[], nn.Module]:
    """``path``: below ``torchvision.models``."""

    def build() -> nn.Module:
        found = package("torchvision").models
        for name in path.split("."):
            found = getattr(found, name)
        return found(**{"weights": None, **options})

    return build


def _detector(name: str, head: Callable[[nn.Module], nn.Module]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        model = _torchvision(f"detection.{name}", weights_backbone=None)()
        return Heads(model.backbone, head(model))

    return build


def _convnext() -> nn.Module:
    """With branches that count: new ones are scaled by 1e-6, trained ones by about a tenth."""
    model = _torchvision("convnext_tiny")()
    for name, parameter in model.named_parameters():
        if name.endswith("layer_scale"):
            nn.init.constant_(parameter, 0.1)
    return model


def _fpn() -> nn.Module:
    options = {"backbone_name": "resnet18", "norm_layer": nn.BatchNorm2d}
    return _torchvision("detection.backbone_utils.resnet_fpn_backbone", **options)()


def _timm(name: str) -> Callable[[], nn.Module]:
    return lambda: package("timm").create_model(name, pretrained=False)


def _smp(name: str) -> Callable[[], nn.Module]:
    return lambda: getattr(package("segmentation_models_pytorch"), name)("resnet18", encoder_weights=None)


def _monai(name: str, **options: object) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        package("monai")
        return getattr(package("monai.networks.nets"), name)(spatial_dims=2, in_channels=1, **options)

    return build


KINDS = ("Classification", "Segmentation", "Detection and flow", "Medical", "Own")
_CLASSIFIERS = {  # torchvision's: name -> (family, side, quick)
    "alexnet": ("alexnet", 64, True),
    "vgg16": ("vgg", 64, False),
    "resnet18": ("resnet", 64, True),
    "resnet50": ("resnet", 64, False),
    "resnext50_32x4d": ("resnext", 64, False),
    "wide_resnet50_2": ("wide_resnet", 64, False),
    "densenet121": ("densenet", 64, False),
    "squeezenet1_1": ("squeezenet", 64, True),
    "mobilenet_v2": ("mobilenet_v2", 64, False),
    "mobilenet_v3_small": ("mobilenet_v3", 64, True),
    "mnasnet1_0": ("mnasnet", 64, False),
    "efficientnet_b0": ("efficientnet_b", 64, False),
    "efficientnet_v2_s": ("efficientnet_v2", 64, False),
    "shufflenet_v2_x1_0": ("shufflenet_v2", 64, False),
    "regnet_y_400mf": ("regnet", 64, False),
}
_FLOW = {"size": 128, "inputs": 2, "family": "raft"}
_CHANNELS = {"out_channels": 2}
_DYNUNET = {"kernel_size": [3, 3, 3, 3], "strides": [1, 2, 2, 2], "upsample_kernel_size": [2, 2, 2]}

NETWORKS: dict[str, Network] = {
    **{
        name: Network(_torchvision(name), "torchvision", KINDS[0], side, quick=quick, family=family)
        for name, (family, side, quick) in _CLASSIFIERS.items()
    },
    "googlenet": Network(
        _torchvision("googlenet", init_weights=False), "torchvision", KINDS[0], family="googlenet"
    ),
    "inception_v3": Network(
        _torchvision("inception_v3", init_weights=False, aux_logits=False),
        "torchvision", KINDS[0], 96, family="inception",
    ),
    "convnext_tiny": Network(_convnext, "torchvision", KINDS[0], family="convnext"),
    "resnet50d": Network(_timm("resnet50d"), "timm", KINDS[0]),
    "hrnet_w18_small": Network(_timm("hrnet_w18_small"), "timm", KINDS[0]),
    "repvgg_a0": Network(_timm("repvgg_a0"), "timm", KINDS[0]),
    "fcn_resnet50": Network(
        _torchvision("segmentation.fcn_resnet50", weights_backbone=None), "torchvision", KINDS[1], family="fcn"
    ),
    "deeplabv3_resnet50": Network(
        _torchvision("segmentation.deeplabv3_resnet50", weights_backbone=None),
        "torchvision", KINDS[1], family="deeplabv3",
    ),
    "lraspp_mobilenet_v3_large": Network(
        _torchvision("segmentation.lraspp_mobilenet_v3_large", weights_backbone=None),
        "torchvision", KINDS[1], family="lraspp",
    ),
    "Unet resnet18": Network(_smp("Unet"), "segmentation_models_pytorch", KINDS[1]),
    "FPN resnet18": Network(_smp("FPN"), "segmentation_models_pytorch", KINDS[1]),
    "DeepLabV3Plus resnet18": Network(_smp("DeepLabV3Plus"), "segmentation_models_pytorch", KINDS[1]),
    "resnet_fpn_backbone resnet18": Network(_fpn, "torchvision", KINDS[2]),
    "fasterrcnn_resnet50_fpn": Network(
        _detector("fasterrcnn_resnet50_fpn", lambda model: model.rpn.head),
        "torchvision", KINDS[2], family="fasterrcnn, maskrcnn, keypointrcnn",
    ),
    "retinanet_resnet50_fpn": Network(
        _detector("retinanet_resnet50_fpn", lambda model: model.head), "torchvision", KINDS[2], family="retinanet"
    ),
    "fcos_resnet50_fpn": Network(
        _detector("fcos_resnet50_fpn", lambda model: model.head), "torchvision", KINDS[2], family="fcos"
    ),
    "ssd300_vgg16": Network(
        _detector("ssd300_vgg16", lambda model: model.head), "torchvision", KINDS[2], 300, family="ssd"
    ),
    "ssdlite320_mobilenet_v3_large": Network(
        _detector("ssdlite320_mobilenet_v3_large", lambda model: model.head),
        "torchvision", KINDS[2], 320, family="ssdlite",
    ),
    "raft_small": Network(_torchvision("optical_flow.raft_small"), "torchvision", KINDS[2], **_FLOW),
    "BasicUNet": Network(_monai("BasicUNet", **_CHANNELS), "monai", KINDS[3], channels=1),
    "DynUNet": Network(_monai("DynUNet", **_CHANNELS, **_DYNUNET), "monai", KINDS[3], channels=1),
    "SegResNet": Network(_monai("SegResNet", **_CHANNELS), "monai", KINDS[3], channels=1),
    "DenseNet121 (MONAI)": Network(_monai("DenseNet121", **_CHANNELS), "monai", KINDS[3], channels=1),
    "autoencoder": Network(small.Autoencoder, OWN, KINDS[4], 32, quick=True),
    "shared module": Network(small.Shared, OWN, KINDS[4], 32, quick=True),
    "module called twice": Network(small.Twice, OWN, KINDS[4], 32, quick=True),
    "module at two sizes": Network(small.Pyramid, OWN, KINDS[4], 32, quick=True),
    "Python control flow": Network(small.Branches, OWN, KINDS[4], 32, quick=True),
    "dict output": Network(small.Dicts, OWN, KINDS[4], 32, quick=True),
    "tuple output": Network(small.Tuples, OWN, KINDS[4], 32, quick=True),
    "two inputs": Network(small.Several, OWN, KINDS[4], 32, inputs=2, quick=True),
    "reads a weight": Network(small.Reads, OWN, KINDS[4], 32, quick=True),
}  # fmt: skip
