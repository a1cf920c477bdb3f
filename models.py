"""HyperIQA: a backbone, a hypernetwork, and the small target network that it generates for each image.

Su et al., "Blindly Assess Image Quality in the Wild Guided by a Self-Adaptive Hyper Network", CVPR 2020.

    paras = HyperNet(16, 112, 224, 112, 56, 28, 14, 7)(patches)     # patches: (B, 3, 224, 224)
    scores = TargetNet(paras)(paras['target_in_vec'])               # (B,)
"""

from contextlib import nullcontext
from itertools import pairwise
from typing import cast

import torch
from torch import nn
from torchvision.models import ResNet
from torchvision.models.resnet import Bottleneck

PATCH_SIZE = 224


class ResNetBackbone(ResNet):
    """ResNet-50 without its classifier, with the local distortion aware (LDA) heads of section 3.2 of the paper.

    Args:
        lda_out_channels: features that each of the first three heads gives.
        in_chn: features of the four heads together, the target network's input size.
    """

    def __init__(self, lda_out_channels: int, in_chn: int) -> None:
        super().__init__(Bottleneck, [3, 4, 6, 3])
        del self.avgpool, self.fc

        self.lda1_pool = nn.Sequential(nn.Conv2d(256, 16, 1, bias=False), nn.AvgPool2d(7, stride=7))
        self.lda1_fc = nn.Linear(16 * 64, lda_out_channels)
        self.lda2_pool = nn.Sequential(nn.Conv2d(512, 32, 1, bias=False), nn.AvgPool2d(7, stride=7))
        self.lda2_fc = nn.Linear(32 * 16, lda_out_channels)
        self.lda3_pool = nn.Sequential(
            nn.Conv2d(1024, 64, 1, bias=False), nn.AvgPool2d(7, stride=7)
        )
        self.lda3_fc = nn.Linear(64 * 4, lda_out_channels)
        self.lda4_pool = nn.AvgPool2d(7, stride=7)
        self.lda4_fc = nn.Linear(2048, in_chn - lda_out_channels * 3)

        convolutions = (self.lda1_pool[0], self.lda2_pool[0], self.lda3_pool[0])
        for layer in (*convolutions, self.lda1_fc, self.lda2_fc, self.lda3_fc, self.lda4_fc):
            nn.init.kaiming_normal_(cast(torch.Tensor, layer.weight))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """(B, 3, 224, 224) images -> `hyper_in_feat` (B, 2048, 7, 7) and `target_in_vec` (B, in_chn)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer1(x)
        lda_1 = self.lda1_fc(self.lda1_pool(x).flatten(1))
        x = self.layer2(x)
        lda_2 = self.lda2_fc(self.lda2_pool(x).flatten(1))
        x = self.layer3(x)
        lda_3 = self.lda3_fc(self.lda3_pool(x).flatten(1))
        x = self.layer4(x)
        lda_4 = self.lda4_fc(self.lda4_pool(x).flatten(1))
        return {'hyper_in_feat': x, 'target_in_vec': torch.cat((lda_1, lda_2, lda_3, lda_4), 1)}


def resnet50_backbone(lda_out_channels: int, in_chn: int) -> ResNetBackbone:
    """A randomly initialised `ResNetBackbone`."""
    return ResNetBackbone(lda_out_channels, in_chn)


class HyperNet(nn.Module):
    """Generates the weights and biases of a target network for each image (section 3.3 of the paper).

    Args:
        lda_out_channels: features of each of the first three LDA heads (16).
        hyper_in_channels: channels of the feature that weights are generated from (112).
        target_in_size: size of the target network's input (224).
        target_fc1_size ... target_fc4_size: its layers' output sizes (112, 56, 28, 14); the fifth gives the score.
        feature_size: height and width of the backbone's last feature (7).
    """

    def __init__(
        self,
        lda_out_channels: int,
        hyper_in_channels: int,
        target_in_size: int,
        target_fc1_size: int,
        target_fc2_size: int,
        target_fc3_size: int,
        target_fc4_size: int,
        feature_size: int,
    ) -> None:
        super().__init__()
        self.target_in_size = target_in_size
        self.sizes = (
            target_in_size,
            target_fc1_size,
            target_fc2_size,
            target_fc3_size,
            target_fc4_size,
        )
        self.res = resnet50_backbone(lda_out_channels, target_in_size)

        self.conv1 = nn.Sequential(
            nn.Conv2d(2048, 1024, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(1024, 512, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(512, hyper_in_channels, 1),
            nn.ReLU(inplace=True),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)

        for k, (f_in, f_out) in enumerate(
            pairwise(self.sizes), start=1
        ):  # fc1w_conv, fc1b_fc ... fc4w_conv, fc4b_fc
            self.add_module(
                f'fc{k}w_conv',
                nn.Conv2d(hyper_in_channels, f_in * f_out // feature_size**2, 3, padding=1),
            )
            self.add_module(f'fc{k}b_fc', nn.Linear(hyper_in_channels, f_out))
        self.fc5w_fc = nn.Linear(hyper_in_channels, target_fc4_size)
        self.fc5b_fc = nn.Linear(hyper_in_channels, 1)
        for name, layer in self.named_children():
            if name.startswith('fc'):
                nn.init.kaiming_normal_(cast(torch.Tensor, layer.weight))

    def forward(self, img: torch.Tensor) -> dict[str, torch.Tensor]:
        """(B, 3, 224, 224) ImageNet-normalised patches -> the target network's parameters, one set an image.

        Returns:
            `target_in_vec` (B, 224, 1, 1); `target_fc{k}w` (B, out, in, 1, 1) and `target_fc{k}b` (B, out)
            for k = 1 ... 5.

        Raises:
            ValueError: the patches are not 224x224.
        """
        if img.shape[-2:] != (PATCH_SIZE, PATCH_SIZE):
            raise ValueError(patch_size_reason(f'{img.shape[-2]}x{img.shape[-1]}'))
        features = self.res(img)
        paras = {'target_in_vec': features['target_in_vec'].view(-1, self.target_in_size, 1, 1)}
        hyper_feat = self.conv1(features['hyper_in_feat'])
        pooled = self.pool(hyper_feat).flatten(1)
        for k, (f_in, f_out) in enumerate(pairwise(self.sizes), start=1):
            paras[f'target_fc{k}w'] = getattr(self, f'fc{k}w_conv')(hyper_feat).reshape(
                -1, f_out, f_in, 1, 1
            )
            paras[f'target_fc{k}b'] = getattr(self, f'fc{k}b_fc')(pooled)
        paras['target_fc5w'] = self.fc5w_fc(pooled).view(-1, 1, self.sizes[-1], 1, 1)
        paras['target_fc5b'] = self.fc5b_fc(pooled)
        return paras


def patch_size_reason(size: int | str) -> str:
    """The one explanation, for the script and the network, of why patches are 224x224."""
    return (
        f'the patch size must be {PATCH_SIZE}, not {size}: the LDA heads and the generated weights are sized '
        f'for the 7x7 features that ResNet-50 makes of a {PATCH_SIZE}x{PATCH_SIZE} patch'
    )


class TargetFC(nn.Module):
    """A fully connected layer with a weight and a bias of its own for each image.

    Args:
        weight: (B, out, in, 1, 1).
        bias: (B, out).
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        super().__init__()
        self.weight = weight
        self.bias = bias

    def forward(self, input_: torch.Tensor) -> torch.Tensor:
        """(B, in, 1, 1) -> (B, out, 1, 1), as one batched matrix product."""
        out = torch.baddbmm(self.bias.unsqueeze(2), self.weight.flatten(2), input_.flatten(2))
        return out.unsqueeze(3)


class TargetNet(nn.Module):
    """The quality predictor whose parameters `HyperNet` generated (section 3.4 of the paper).

    It always computes in float32, since its input is one vector an image and its output is compared to the third decimal.
    """

    def __init__(self, paras: dict[str, torch.Tensor]) -> None:
        super().__init__()
        names = [(f'target_fc{k}w', f'target_fc{k}b') for k in range(1, 6)]
        self.layers = nn.ModuleList(
            TargetFC(paras[weight].float(), paras[bias].float()) for weight, bias in names
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`target_in_vec` (B, 224, 1, 1) -> unbounded scores (B,)."""
        # only where there is one to switch off: an exported graph with a switch in it is not read by PyTorch 2.6
        with (
            torch.autocast(x.device.type, enabled=False)
            if torch.is_autocast_enabled(x.device.type)
            else nullcontext()
        ):
            x = x.float()
            for layer in self.layers[:-1]:
                x = torch.sigmoid(layer(x))
            return self.layers[-1](x).flatten()


def predict_scores(model: nn.Module, patches: torch.Tensor) -> torch.Tensor:
    """(B, 3, 224, 224) normalised patches -> scores (B,): both networks in one call."""
    paras = model(patches)
    return TargetNet(paras)(paras['target_in_vec'])


def hyperiqa() -> HyperNet:
    """The network with the paper's sizes, randomly initialised."""
    return HyperNet(16, 112, 224, 112, 56, 28, 14, 7)
