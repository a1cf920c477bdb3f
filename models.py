"""HyperIQA: a backbone, and a hypernetwork that generates a small target network for each image.

Su et al., "Blindly Assess Image Quality in the Wild Guided by a Self-Adaptive Hyper Network",
CVPR 2020.

    paras = hyperiqa()(patches)                          # patches: (B, 3, 224, 224)
    scores = TargetNet(paras)(paras['target_in_vec'])    # (B,)
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
    """ResNet-50 without its classifier, with the paper's local distortion aware (LDA) heads.

    See section 3.2 of the paper.

    Args:
        lda_out_channels: features that each of the first three heads gives.
        in_chn: size of the vector that the four heads give together, the input of the target
            network (224). The name is the original's.
    """

    def __init__(self, lda_out_channels: int, in_chn: int) -> None:
        super().__init__(Bottleneck, [3, 4, 6, 3])
        del self.avgpool, self.fc

        # After the four layers of ResNet-50 there are 56x56, 28x28, 14x14 and 7x7 features. Pooled
        # in steps of 7, they are 8x8, 4x4, 2x2 and 1x1.
        self.lda1_pool = nn.Sequential(nn.Conv2d(256, 16, 1, bias=False), nn.AvgPool2d(7, stride=7))
        self.lda1_fc = nn.Linear(16 * 8 * 8, lda_out_channels)
        self.lda2_pool = nn.Sequential(nn.Conv2d(512, 32, 1, bias=False), nn.AvgPool2d(7, stride=7))
        self.lda2_fc = nn.Linear(32 * 4 * 4, lda_out_channels)
        self.lda3_pool = nn.Sequential(
            nn.Conv2d(1024, 64, 1, bias=False), nn.AvgPool2d(7, stride=7)
        )
        self.lda3_fc = nn.Linear(64 * 2 * 2, lda_out_channels)
        self.lda4_pool = nn.AvgPool2d(7, stride=7)
        self.lda4_fc = nn.Linear(2048, in_chn - lda_out_channels * 3)

        # The order decides which random numbers a layer gets.
        convolutions = (self.lda1_pool[0], self.lda2_pool[0], self.lda3_pool[0])
        for layer in (*convolutions, self.lda1_fc, self.lda2_fc, self.lda3_fc, self.lda4_fc):
            nn.init.kaiming_normal_(cast(torch.Tensor, layer.weight))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the features of (B, 3, 224, 224) images.

        Returns:
            `hyper_in_feat` (B, 2048, 7, 7), and `target_in_vec` (B, in_chn).
        """
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
    """Return a randomly initialised `ResNetBackbone`; the original's name for it."""
    return ResNetBackbone(lda_out_channels, in_chn)


class HyperNet(nn.Module):
    """Generates a target network's weights and biases for each image (section 3.3 of the paper).

    Args:
        lda_out_channels: features of each of the first three LDA heads (16).
        hyper_in_channels: channels of the feature that weights are generated from (112).
        target_in_size: size of the target network's input (224).
        target_fc1_size ... target_fc4_size: output sizes of its first four layers (112, 56, 28,
            14); the fifth gives the score.
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

        # These generate the layers' weights and biases. They are made by their names in the weight
        # files, self.fc1w_conv, self.fc1b_fc ... self.fc4w_conv, self.fc4b_fc.
        for k, (f_in, f_out) in enumerate(pairwise(self.sizes), start=1):
            # Each position of the 7x7 feature gives an equal share of the f_in * f_out weights.
            channels = f_in * f_out // feature_size**2
            weight_head = nn.Conv2d(hyper_in_channels, channels, 3, padding=1)
            bias_head = nn.Linear(hyper_in_channels, f_out)
            self.add_module(f'fc{k}w_conv', weight_head)
            self.add_module(f'fc{k}b_fc', bias_head)
        self.fc5w_fc = nn.Linear(hyper_in_channels, target_fc4_size)
        self.fc5b_fc = nn.Linear(hyper_in_channels, 1)
        for name, layer in self.named_children():
            if name.startswith('fc'):
                nn.init.kaiming_normal_(cast(torch.Tensor, layer.weight))

    def forward(self, img: torch.Tensor) -> dict[str, torch.Tensor]:
        """Generate the target network's parameters for each image.

        Args:
            img: (B, 3, 224, 224) patches, normalised with the statistics of ImageNet.

        Returns:
            `target_in_vec` (B, 224, 1, 1), the input of the target network; `target_fc{k}w`
            (B, out, in, 1, 1) and `target_fc{k}b` (B, out) for k = 1 ... 5. The two 1s are the
            original's, whose layers were 1x1 convolutions.

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
            # Not by get_submodule, which torch.export of PyTorch 2.6 does not know.
            weight_head = getattr(self, f'fc{k}w_conv')
            bias_head = getattr(self, f'fc{k}b_fc')
            # Which weight comes from which position does not matter, as long as it stays the same.
            paras[f'target_fc{k}w'] = weight_head(hyper_feat).reshape(-1, f_out, f_in, 1, 1)
            paras[f'target_fc{k}b'] = bias_head(pooled)
        paras['target_fc5w'] = self.fc5w_fc(pooled).view(-1, 1, self.sizes[-1], 1, 1)
        paras['target_fc5b'] = self.fc5b_fc(pooled)
        return paras


def patch_size_reason(size: int | str) -> str:
    """Return the message of why patches are 224x224, for the script and the network."""
    return (
        f'the patch size must be {PATCH_SIZE}, not {size}: the LDA heads and the generated weights '
        f'are sized for the 7x7 features that ResNet-50 makes of a {PATCH_SIZE}x{PATCH_SIZE} patch'
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
        """Return the output (B, out, 1, 1) for an input (B, in, 1, 1)."""
        # For each image: (out, 1) + (out, in) @ (in, 1).
        out = torch.baddbmm(self.bias.unsqueeze(2), self.weight.flatten(2), input_.flatten(2))
        return out.unsqueeze(3)


class TargetNet(nn.Module):
    """The quality predictor whose parameters `HyperNet` generated (section 3.4 of the paper).

    It always computes in float32, which costs little for one vector per image. bfloat16 has too few
    digits for scores that are compared to the third decimal.
    """

    def __init__(self, paras: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for k in range(1, 6):
            weight = paras[f'target_fc{k}w'].float()
            bias = paras[f'target_fc{k}b'].float()
            self.layers.append(TargetFC(weight, bias))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return unbounded scores (B,) for the `target_in_vec` (B, 224, 1, 1) of `HyperNet`."""
        # Autocast is switched off only if it is on: PyTorch 2.6 cannot load an exported graph that
        # contains the switch.
        device = x.device.type
        is_on = torch.is_autocast_enabled(device)
        without_autocast = torch.autocast(device, enabled=False) if is_on else nullcontext()
        with without_autocast:
            x = x.float()
            for layer in self.layers[:-1]:
                x = torch.sigmoid(layer(x))
            return self.layers[-1](x).flatten()


def predict_scores(model: nn.Module, patches: torch.Tensor) -> torch.Tensor:
    """Return the scores (B,) of normalised patches (B, 3, 224, 224): both networks in one call."""
    paras = model(patches)
    return TargetNet(paras)(paras['target_in_vec'])


def hyperiqa() -> HyperNet:
    """Return the network with the paper's sizes, randomly initialised."""
    return HyperNet(
        lda_out_channels=16,
        hyper_in_channels=112,
        target_in_size=224,
        target_fc1_size=112,
        target_fc2_size=56,
        target_fc3_size=28,
        target_fc4_size=14,
        feature_size=7,
    )
