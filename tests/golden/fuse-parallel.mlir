// RUN: lapidary-opt %s --pass-pipeline=fuse | FileCheck %s

// Two norms of one input share the reading of it; each half of the block takes one of the two sums.
// CHECK: nn.fused "attn_norm-mlp_norm" row
// CHECK: nn.norm
// CHECK-NEXT: nn.norm
// CHECK: reason = "the input is read once"
// CHECK: nn.fused "attn.out" matmul
// CHECK: nn.linear
// CHECK-NEXT: nn.add
// CHECK: nn.fused "mlp.down" matmul
// CHECK: nn.linear
// CHECK-NEXT: nn.add
// CHECK-NOT: nn.fused
func.func @layer(%layer: index, %x: tensor<1x2x8xf32>) -> tensor<1x2x8xf32> {
  %ga = nn.param "layers.*.attn_norm.weight"[%layer] : tensor<8xf32>
  %gm = nn.param "layers.*.mlp_norm.weight"[%layer] : tensor<8xf32>
  %wa = nn.param "layers.*.attn.out.weight"[%layer] : tensor<8x8xf32>
  %wm = nn.param "layers.*.mlp.down.weight"[%layer] : tensor<8x8xf32>
  %ha = nn.norm rms %x, %ga eps = 1.000000e-05 : (tensor<1x2x8xf32>, tensor<8xf32>) -> tensor<1x2x8xf32>
  %hm = nn.norm rms %x, %gm eps = 1.000000e-05 : (tensor<1x2x8xf32>, tensor<8xf32>) -> tensor<1x2x8xf32>
  %a = nn.linear %ha, %wa : (tensor<1x2x8xf32>, tensor<8x8xf32>) -> tensor<1x2x8xf32>
  %m = nn.linear %hm, %wm : (tensor<1x2x8xf32>, tensor<8x8xf32>) -> tensor<1x2x8xf32>
  %x1 = nn.add %x, %a : tensor<1x2x8xf32>
  %x2 = nn.add %x1, %m : tensor<1x2x8xf32>
  return %x2 : tensor<1x2x8xf32>
}
