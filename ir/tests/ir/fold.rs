//! Folds and canonicalisations of the dialects.

use crate::{ARGUMENTS, parse};
use lapidary_ir::{IrContext, Pipeline};

/// The body of a one-result function after a pipeline, one op per line.
fn after(passes: &[&str], ty: &str, body: &str) -> Vec<String> {
    let cx = IrContext::new();
    let mut module =
        parse(&cx, &format!("func.func @f({ARGUMENTS}) -> {ty} {{\n{body}\nreturn %r : {ty}\n}}\n"));
    let mut pipeline = Pipeline::new();
    for pass in passes {
        pipeline.add_builtin(pass);
    }
    pipeline.run(&mut module, &mut |_| {}).unwrap_or_else(|error| panic!("{error}"));
    let text = module.to_string();
    text.lines().skip(2).map(|line| line.trim().to_owned()).take_while(|line| line != "}").collect()
}

const X: &str = "tensor<2x8x64xf32>";

#[test]
fn scale_by_one_is_nothing() {
    let body = format!("%r = nn.scale %x by 1.0 as \"output\" : {X}");
    assert_eq!(after(&["canonicalize"], X, &body), [format!("return %arg2 : {X}")]);
}

#[test]
fn two_scales_of_one_role_are_one() {
    let body =
        format!("%0 = nn.scale %x by 3.0 as \"output\" : {X}\n%r = nn.scale %0 by 0.5 as \"output\" : {X}");
    let found = after(&["canonicalize"], X, &body);
    assert_eq!(
        found,
        [format!("%0 = nn.scale %arg2 by 1.5 as \"output\" : {X}"), format!("return %0 : {X}")]
    );
}

#[test]
fn two_scales_of_different_roles_stay() {
    let body =
        format!("%0 = nn.scale %x by 3.0 as \"output\" : {X}\n%r = nn.scale %0 by 0.5 as \"residual\" : {X}");
    assert_eq!(after(&["canonicalize"], X, &body).len(), 3);
}

#[test]
fn the_last_token_of_one_is_itself() {
    let one = "tensor<2x1x64xf32>";
    let body = format!("%0 = nn.last_token %x : ({X}) -> {one}\n%r = nn.last_token %0 : ({one}) -> {one}");
    assert_eq!(after(&["canonicalize"], one, &body).len(), 2);
}

#[test]
fn a_mask_that_hides_nothing_is_nothing() {
    let s = "tensor<2x4x8x8xf32>";
    assert_eq!(
        after(&["canonicalize"], s, &format!("%r = nn.mask %s : {s}")),
        [format!("return %arg10 : {s}")]
    );
    assert_eq!(after(&["canonicalize"], s, &format!("%r = nn.mask %s causal : {s}")).len(), 2);
}

#[test]
fn equal_ops_merge_but_writes_to_the_cache_stay() {
    let pure = format!("%0 = nn.softmax %x : {X}\n%1 = nn.softmax %x : {X}\n%r = nn.add %0, %1 : {X}");
    assert_eq!(after(&["cse"], X, &pure).len(), 3);
    let k = "tensor<2x8x32xf32>";
    let unread = format!(
        "%0 = nn.kv_append k %k[%i] cached = 0 : {k} -> {k}\n%1 = nn.kv_append k %k[%i] cached = 0 : {k} -> {k}\n%r = nn.add %k, %k : {k}"
    );
    assert_eq!(after(&["cse", "canonicalize"], k, &unread).len(), 4);
}

#[test]
fn a_kernel_takes_each_value_once_and_only_what_it_reads() {
    let body = format!(
        "%r = nn.fused \"k\" elementwise(%a = %x : {X}, %b = %x : {X}, %c = %n : tensor<64xf32>) -> {X} {{\n%1 = nn.add %a, %b : {X}\nnn.yield %1 : {X}\n}} saved_bytes = 0 reason = \"r\""
    );
    let found = after(&["canonicalize"], X, &body);
    assert_eq!(found[0], format!("%0 = nn.fused \"k\" elementwise(%arg12 = %arg2 : {X}) -> {X} {{"));
    assert_eq!(found[1], format!("%1 = nn.add %arg12, %arg12 : {X}"));
}
