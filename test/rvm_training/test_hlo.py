"""Products and collectives counted in programs written by hand, and in programs that XLA compiled here."""

from __future__ import annotations

import re
from textwrap import dedent

import pytest

from rvm_training.hlo import HloError, Traffic, Work, count_work, parse

LOOP = dedent(
    """\
    HloModule loop, is_scheduled=true

    %add (a: f32[], b: f32[]) -> f32[] {
      %a = f32[]{:T(128)} parameter(0)
      %b = f32[]{:T(128)} parameter(1)
      ROOT %sum = f32[]{:T(128)} add(%a, %b)
    }

    %fused (p: bf16[8,16], q: bf16[16,32]) -> f32[8,32] {
      %p = bf16[8,16]{1,0:T(8,128)(2,1)} parameter(0)
      %q = bf16[16,32]{1,0:T(8,128)(2,1)} parameter(1)
      ROOT %product = f32[8,32]{1,0:T(8,128)} convolution(%p, %q), dim_labels=bf_io->bf
    }

    %body (t: (s32[], bf16[8,16], bf16[4,32], /*index=3*/f32[8,32])) -> (s32[], bf16[8,16], bf16[4,32], f32[8,32]) {
      %t = (s32[]{:T(128)}, bf16[8,16]{1,0}, bf16[4,32]{1,0}, /*index=3*/f32[8,32]{1,0}) parameter(0)
      %i = s32[]{:T(128)} get-tuple-element(%t), index=0
      %one = s32[]{:T(128)} constant(1)
      %next = s32[]{:T(128)} add(%i, %one)
      %x = bf16[8,16]{1,0} get-tuple-element(%t), index=1
      %shard = bf16[4,32]{1,0} get-tuple-element(%t), index=2
      %gathering = (bf16[4,32]{1,0}, bf16[16,32]{1,0}) all-gather-start(%shard), replica_groups={{0,1,2,3}}, dimensions={0}
      %whole = bf16[16,32]{1,0} all-gather-done(%gathering)
      %y = f32[8,32]{1,0} fusion(%x, %whole), kind=kOutput, calls=%fused, metadata={op_name="a/while/body=%b"}
      ROOT %out = (s32[]{:T(128)}, bf16[8,16]{1,0}, bf16[4,32]{1,0}, f32[8,32]{1,0}) tuple(%next, %x, %shard, %y)
    }

    %condition (c: (s32[], bf16[8,16], bf16[4,32], f32[8,32])) -> pred[] {
      %c = (s32[]{:T(128)}, bf16[8,16]{1,0}, bf16[4,32]{1,0}, f32[8,32]{1,0}) parameter(0)
      %n = s32[]{:T(128)} constant(7)
      %j = s32[]{:T(128)} get-tuple-element(%c), index=0
      ROOT %more = pred[]{:T(512)} compare(%j, %n), direction=LT
    }

    ENTRY %main (x0: bf16[8,16], shard0: bf16[4,32], y0: f32[8,32]) -> f32[8,32] {
      %x0 = bf16[8,16]{1,0} parameter(0)
      %shard0 = bf16[4,32]{1,0} parameter(1)
      %y0 = f32[8,32]{1,0} parameter(2)
      %zero = s32[]{:T(128)} constant(0)
      %zero.copy = s32[]{:T(128)} copy(%zero)
      %start = (s32[]{:T(128)}, bf16[8,16]{1,0}, bf16[4,32]{1,0}, f32[8,32]{1,0}) tuple(%zero.copy, %x0, %shard0, %y0)
      %loop = (s32[]{:T(128)}, bf16[8,16]{1,0}, bf16[4,32]{1,0}, f32[8,32]{1,0}) while(%start), condition=%condition, body=%body
      %y = f32[8,32]{1,0} get-tuple-element(%loop), index=3
      ROOT %sum = f32[8,32]{1,0} all-reduce(%y), replica_groups={{0,1,2,3}}, to_apply=%add
    }
    """  # noqa: E501
)
PRODUCT = 2 * 8 * 16 * 32


def test_bodies_of_loops_count_as_often_as_they_run() -> None:
    assert count_work(LOOP) == Work(
        flops=7 * PRODUCT,
        flops_bodies_once=PRODUCT,
        collectives={
            "all-gather": Traffic(count=7, bytes=7 * 16 * 32 * 2),
            "all-reduce": Traffic(count=1, bytes=8 * 32 * 4),
        },
    )


def test_the_compiler_may_say_how_often() -> None:
    said = LOOP.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"3"}}')
    assert count_work(said).flops == 3 * PRODUCT


def test_loops_that_begin_later_run_less() -> None:
    assert count_work(LOOP.replace("constant(0)", "constant(5)")).flops == 2 * PRODUCT


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("direction=LT", "direction=NE", "does not end at a constant"),
        ("constant(0)", "parameter(3)", "runs from parameter to constant"),
        ("ENTRY %main", "%main", "no ENTRY"),
        (" condition=%condition,", "", "loop has no condition"),
    ],
)
def test_what_cannot_be_counted_is_an_error(old: str, new: str, message: str) -> None:
    with pytest.raises(HloError, match=message):
        count_work(LOOP.replace(old, new))


def test_half_of_a_scattered_sum_is_no_whole_sum() -> None:
    """A TPU's compiler writes a reduce-scatter as a computation of that name, of a sum and a slice."""
    text = dedent(
        """\
        %all-reduce-scatter.1 (p: f32[64,8]) -> f32[16,8] {
          %p = f32[64,8]{1,0} parameter(0)
          %all = f32[64,8]{1,0} all-reduce(%p), replica_groups={{0,1,2,3}}
          %place = s32[] constant(0)
          ROOT %part = f32[16,8]{1,0} dynamic-slice(%all, %place, %place), dynamic_slice_sizes={16,8}
        }

        ENTRY %main (p: f32[64,8]) -> f32[16,8] {
          %p = f32[64,8]{1,0} parameter(0)
          ROOT %r = f32[16,8]{1,0} fusion(%p), kind=kCustom, calls=%all-reduce-scatter.1
        }
        """
    )
    assert count_work(text).collectives == {"reduce-scatter": Traffic(count=1, bytes=64 * 8 * 4)}


def test_only_the_larger_branch_counts() -> None:
    text = dedent(
        """\
        %small (p: f32[4,4]) -> f32[4,4] {
          %p = f32[4,4]{1,0} parameter(0)
          ROOT %d = f32[4,4]{1,0} dot(%p, %p), lhs_contracting_dims={1}, rhs_contracting_dims={0}
        }

        %none (q: f32[4,4]) -> f32[4,4] {
          ROOT %q = f32[4,4]{1,0} parameter(0)
        }

        ENTRY %main (w: pred[], p: f32[4,4]) -> f32[4,4] {
          %w = pred[] parameter(0)
          %p = f32[4,4]{1,0} parameter(1)
          ROOT %r = f32[4,4]{1,0} conditional(%w, %p, %p), true_computation=%small, false_computation=%none
        }
        """
    )
    assert count_work(text).flops == 2 * 4**3


def product(line: str, left: str, right: str) -> int:
    text = f"ENTRY %main (a: {left}, b: {right}) -> f32[] {{\n  %a = {left} parameter(0)\n  %b = {right} parameter(1)\n"
    return count_work(text + f"  ROOT %c = {line}\n}}\n").flops


def test_products_in_the_shape_of_convolutions() -> None:
    plain = "f32[2,257,512]{2,1,0} convolution(%a, %b), window={size=1}, dim_labels=b0f_0io->b0f"
    assert product(plain, "bf16[2,257,384]", "bf16[1,384,512]") == 2 * 2 * 257 * 384 * 512
    # A batch of products: 8x2 of them along dilated axes of which each window meets one value.
    batched = (
        "f32[8,2,17,19]{3,2,1,0} convolution(%a, %b), window={size=8x2 stride=7x1 lhs_dilate=8x2}, "
        "dim_labels=01bf_01oi->01bf"
    )
    assert product(batched, "bf16[8,2,17,32]", "bf16[8,2,19,32]") == 2 * 8 * 2 * 17 * 19 * 32
    # Padding is no work: a full correlation of 16 with 16 meets 16 * 16 pairs, not 31 * 16.
    padded = (
        "f32[4,31,64]{2,1,0} convolution(%a, %b), window={size=16 pad=15_15 rhs_reversal=1}, dim_labels=bf0_i0o->b0f"
    )
    assert product(padded, "bf16[4,3,16]", "bf16[3,16,64]") == 2 * 4 * 3 * 64 * 16 * 16


def test_names_and_tuples_are_read() -> None:
    program = parse(LOOP)
    start = program["main"].instructions["start"]
    assert start.opcode == "tuple" and start.operands == ("zero.copy", "x0", "shard0", "y0")
    assert [array.shape for array in start.arrays] == [(), (8, 16), (4, 32), (8, 32)]
    assert program["body"].instructions["y"].calls == ("fused",)


def test_a_program_of_xla() -> None:
    """A loop of products and their gradients, compiled for the CPU, against the same without a loop."""
    jax = pytest.importorskip("jax", reason="the extra `train` is not installed")
    jnp = jax.numpy

    def looped(x: object, weights: object) -> object:
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0].sum()

    def unrolled(x: object, weights: object) -> object:
        for w in weights:  # type: ignore[attr-defined]
            x = jnp.tanh(x @ w)
        return x.sum()  # type: ignore[attr-defined]

    x, weights = jnp.ones((48, 32)), jnp.ones((5, 32, 32))
    counts = []
    for function in (looped, unrolled):
        compiled = jax.jit(jax.grad(function, argnums=(0, 1))).lower(x, weights).compile()
        text = compiled.as_text()
        if re.search("custom-call.*(matmul|dot)", text):
            pytest.skip("this XLA calls a library for products, which the text does not show")
        counts.append(count_work(text).flops)
    assert counts == [3 * 5 * 2 * 48 * 32 * 32] * 2
