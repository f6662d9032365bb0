"""Conversions between floating-point types against torch, over every 16-bit pattern and over random bits."""

import pytest
import torch

from boomspec.core.errors import BoomspecError
from runners.assembly.checkpoint_writer import convert
from tests.messages import wording

TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def some_bits(name: str) -> torch.Tensor:
    """Values of a type: all there are of 16 bits; else random bits, and values half-way between two of 16 bits."""
    dtype = TYPES[name]
    if dtype.itemsize == 2:
        return torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    torch.manual_seed(0)
    integers = torch.int32 if dtype == torch.float32 else torch.int64
    bits = torch.randint(torch.iinfo(integers).min, torch.iinfo(integers).max, (100_000,), dtype=integers).view(dtype)
    ties = (torch.randint(0, 2**16, (10_000,)) * 2**16 + 2**15).to(torch.int32).view(torch.float32).to(dtype)
    return torch.cat([bits, ties, torch.randn(100_000, dtype=dtype)])


def data_of(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("source", TYPES)
@pytest.mark.parametrize("target", TYPES)
def test_values_are_those_that_torch_converts_to(source, target):
    values = some_bits(source)
    values = values[(values.to(TYPES[target]).isinf() <= values.isinf())]  # what overflows is the next test's
    result = torch.frombuffer(bytearray(convert(data_of(values), source, target)), dtype=TYPES[target])
    expected = values.to(TYPES[target])
    assert torch.equal(result.isnan(), expected.isnan())
    numbers = ~expected.isnan()
    assert data_of(result[numbers]) == data_of(expected[numbers])


@pytest.mark.parametrize(("source", "target"), [("F32", "F16"), ("BF16", "F16"), ("F32", "BF16"), ("F64", "F32")])
def test_a_finite_value_never_becomes_an_infinity(source, target):
    largest = torch.tensor([1.0, torch.finfo(TYPES[source]).max], dtype=TYPES[source])
    with pytest.raises(BoomspecError, match=wording("conversion.stored_too_large", source=source, target=target)):
        convert(data_of(largest), source, target)
