// RUN: lapidary-opt %s --pass-pipeline=fuse | FileCheck %s

// A sum that no product makes joins the norm that reads it: the rows are whole there.
// CHECK: nn.fused "attn_norm" row
// CHECK: nn.add
// CHECK-NEXT: nn.norm
// CHECK-NEXT: nn.yield %{{.*}}, %{{.*}}
// CHECK-NEXT: reason = "add is not read again"
func.func @layer(%layer: index, %x: tensor<1x2x8xf32>, %r: tensor<1x2x8xf32>) -> (tensor<1x2x8xf32>, tensor<1x2x8xf32>) {
  %g = nn.param "layers.*.attn_norm.weight"[%layer] : tensor<8xf32>
  %s = nn.add %x, %r : tensor<1x2x8xf32>
  %y = nn.norm rms %s, %g eps = 1.000000e-05 : (tensor<1x2x8xf32>, tensor<8xf32>) -> tensor<1x2x8xf32>
  return %s, %y : tensor<1x2x8xf32>, tensor<1x2x8xf32>
}
