"""Layers and networks: module.py, layers.py, norm.py, wrappers.py; init.py: initial weights."""

from minigan.nn import init
from minigan.nn.layers import (
    ELU,
    AvgPool2d,
    Conv2d,
    ConvTranspose2d,
    Dropout,
    Embedding,
    Flatten,
    Identity,
    LeakyReLU,
    Linear,
    MaxPool2d,
    ReflectionPad2d,
    ReLU,
    Reshape,
    Sigmoid,
    Softplus,
    Tanh,
    Upsample,
)
from minigan.nn.module import Module, ModuleList, Parameter, Sequential
from minigan.nn.norm import BatchNorm1d, BatchNorm2d, InstanceNorm2d, LayerNorm, PixelNorm
from minigan.nn.wrappers import EqualizedLR, SpectralNorm

__all__ = [
    "ELU",
    "AvgPool2d",
    "BatchNorm1d",
    "BatchNorm2d",
    "Conv2d",
    "ConvTranspose2d",
    "Dropout",
    "Embedding",
    "EqualizedLR",
    "Flatten",
    "Identity",
    "InstanceNorm2d",
    "LayerNorm",
    "LeakyReLU",
    "Linear",
    "MaxPool2d",
    "Module",
    "ModuleList",
    "Parameter",
    "PixelNorm",
    "ReLU",
    "ReflectionPad2d",
    "Reshape",
    "Sequential",
    "Sigmoid",
    "Softplus",
    "SpectralNorm",
    "Tanh",
    "Upsample",
    "init",
]
