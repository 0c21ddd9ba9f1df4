"""What a symbolic size was in the example, by the names that the installed torch has for it."""

try:
    from torch.fx.experimental.symbolic_shapes import guarding_hint_or_throw as hint_of
    from torch.fx.experimental.symbolic_shapes import has_guarding_hint as has_hint
except ImportError:  # torch before 2.13
    from torch.fx.experimental.symbolic_shapes import has_hint  # type: ignore[attr-defined, no-redef]
    from torch.fx.experimental.symbolic_shapes import hint_int as hint_of  # type: ignore[attr-defined, no-redef]

__all__ = ["has_hint", "hint_of"]
