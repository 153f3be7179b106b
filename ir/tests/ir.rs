//! The dialects as texts: what is accepted comes back as it was, what is wrong is refused where it stands.

use lapidary_ir::{IrContext, IrError, Module};

#[test]
fn smoke() {
    let cx = IrContext::new();
    let text = "func.func @layer(%layer: index, %x: tensor<1x8x64xbf16>) -> tensor<1x8x64xbf16> {
  %w = nn.param \"layers.*.attn_norm.weight\"[%layer] : tensor<64xbf16>
  %q = nn.param \"layers.*.attn.q.weight\"[%layer] scale = 0.5 : tensor<64x64xbf16>
  %0 = nn.norm rms %x, %w eps = 1.0e-06 : (tensor<1x8x64xbf16>, tensor<64xbf16>) -> tensor<1x8x64xbf16>
  %1 = nn.linear %0, %q : (tensor<1x8x64xbf16>, tensor<64x64xbf16>) -> tensor<1x8x64xbf16>
  %2 = nn.rope half %1 head_dim = 16 rot_dims = 16 theta = 1.0e4 : tensor<1x8x64xbf16>
  %s, %y = nn.fused \"add_norm\" row(%a = %x : tensor<1x8x64xbf16>, %b = %2 : tensor<1x8x64xbf16>,
                                     %g = %w : tensor<64xbf16>)
      -> (tensor<1x8x64xbf16>, tensor<1x8x64xbf16>) {
      %5 = nn.add %a, %b : tensor<1x8x64xbf16>
      %6 = nn.norm rms %5, %g eps = 1.000000e-06 : (tensor<1x8x64xbf16>, tensor<64xbf16>) -> tensor<1x8x64xbf16>
      nn.yield %5, %6 : tensor<1x8x64xbf16>, tensor<1x8x64xbf16>
  } saved_bytes = 1024 reason = \"the sum is normalised where it is made\"
  return %y : tensor<1x8x64xbf16>
}
func.func @main(%x: tensor<1x8x64xbf16>) -> tensor<1x8x64xbf16> {
  %y = nn.repeat @layer times = 32 (%x) : (tensor<1x8x64xbf16>) -> tensor<1x8x64xbf16>
  return %y : tensor<1x8x64xbf16>
}
";
    let module = Module::parse(&cx, text, "a.mlir").unwrap_or_else(|e| panic!("{e}"));
    println!("{module}");
    let again = Module::parse(&cx, &module.to_string(), "b.mlir").unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(module.to_string(), again.to_string());
    let bad = text
        .replace("(tensor<1x8x64xbf16>, tensor<64x64xbf16>)", "(tensor<1x8x64xbf16>, tensor<64x65xbf16>)")
        .replace(": tensor<64x64xbf16>", ": tensor<64x65xbf16>");
    let error: IrError = Module::parse(&cx, &bad, "bad.mlir").err().unwrap();
    println!("{error}");
}
