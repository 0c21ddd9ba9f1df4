"""PTX that turns four bytes of codes in a register into 16-bit floats, two to a register, without a conversion.

The bits of a code u, read as a bfloat16, are u·2⁻¹³³: a subnormal number, and where the eighth bit reaches the exponent
the step is the same; as a float16 they are u·2⁻²⁴. One fused multiply-add per two values takes them to
(u + offset)·UNIT, exactly, where the offset is an integer and the result has no more than eight bits. A nibble in the
upper half of a byte needs no shift: it is 16·u.
"""

BF16_UNIT, F16_UNIT = 2.0**-6, 2.0**-9  # what a step of a code becomes
_BF16, _BF16_HIGH = 0x7F007F00, 0x7D007D00  # 2¹²⁷ and 2¹²³, twice
_F16, _F16_HIGH = 0x78007800, 0x68006800  # 2¹⁵ and 2¹¹, twice


def _nibbles(kind: str, low: int, high: int) -> str:
    """Return PTX: the nibbles of $4, low ones as $0 and $1, high ones as $2 and $3; their offsets are in $5 to $8."""
    return f"""{{
.reg .b32 even, odd, low, high;
prmt.b32 even, $4, 0, 0x4140;
prmt.b32 odd, $4, 0, 0x4342;
mov.b32 low, {low};
mov.b32 high, {high};
and.b32 $0, even, 0x000F000F;
and.b32 $1, odd, 0x000F000F;
and.b32 $2, even, 0x00F000F0;
and.b32 $3, odd, 0x00F000F0;
fma.rn.{kind} $0, $0, low, $5;
fma.rn.{kind} $1, $1, low, $6;
fma.rn.{kind} $2, $2, high, $7;
fma.rn.{kind} $3, $3, high, $8;
}}"""


def _bytes(kind: str, low: int) -> str:
    """Return PTX: the bytes of $2 as $0 and $1; offsets in $3 and $4."""
    return f"""{{
.reg .b32 low;
mov.b32 low, {low};
prmt.b32 $0, $2, 0, 0x4140;
prmt.b32 $1, $2, 0, 0x4342;
fma.rn.{kind} $0, $0, low, $3;
fma.rn.{kind} $1, $1, low, $4;
}}"""


BF16_NIBBLES = _nibbles("bf16x2", _BF16, _BF16_HIGH)
F16_NIBBLES = _nibbles("f16x2", _F16, _F16_HIGH)
BF16_BYTES = _bytes("bf16x2", _BF16)
F16_BYTES = _bytes("f16x2", _F16)
