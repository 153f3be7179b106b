// RUN: lapidary-opt %s --pass-pipeline=fuse | FileCheck %s
// RUN: lapidary-opt %s --pass-pipeline='fuse{off}' | FileCheck %s --check-prefix=OFF

// Bias, factor and residual join the product; the norm that follows needs whole rows and does not.
// CHECK-LABEL: @layer
// CHECK: %[[Y:.*]] = nn.fused "attn.out" matmul
// CHECK: nn.linear
// CHECK-NEXT: nn.bias
// CHECK-NEXT: nn.scale
// CHECK-NEXT: nn.add
// CHECK-NEXT: nn.yield
// CHECK-NEXT: saved_bytes = 384 reason = "attn.out, attn.out.bias and attn.out.scale are never written"
// CHECK: nn.fused "mlp_norm" row
// CHECK: nn.norm
// OFF-COUNT-5: nn.fused
// OFF-NOT: nn.fused
func.func @layer(%layer: index, %x: tensor<1x2x8xf32>, %o: tensor<1x2x8xf32>) -> (tensor<1x2x8xf32>, tensor<1x2x8xf32>) {
  %w = nn.param "layers.*.attn.out.weight"[%layer] : tensor<8x8xf32>
  %b = nn.param "layers.*.attn.out.bias"[%layer] : tensor<8xf32>
  %0 = nn.linear %o, %w : (tensor<1x2x8xf32>, tensor<8x8xf32>) -> tensor<1x2x8xf32>
  %1 = nn.bias %0, %b : (tensor<1x2x8xf32>, tensor<8xf32>) -> tensor<1x2x8xf32>
  %2 = nn.scale %1 by 5.000000e-01 as "residual" : tensor<1x2x8xf32>
  %3 = nn.add %x, %2 : tensor<1x2x8xf32>
  %g = nn.param "layers.*.mlp_norm.weight"[%layer] : tensor<8xf32>
  %4 = nn.norm rms %3, %g eps = 1.000000e-05 : (tensor<1x2x8xf32>, tensor<8xf32>) -> tensor<1x2x8xf32>
  return %3, %4 : tensor<1x2x8xf32>, tensor<1x2x8xf32>
}
