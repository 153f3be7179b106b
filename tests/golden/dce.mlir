// RUN: lapidary-opt %s --pass-pipeline=dce | FileCheck %s

// A chain that nobody reads goes, down to its parameter; a cache is written whether or not its result is read.
// CHECK-LABEL: @layer
// CHECK-COUNT-1: nn.param
// CHECK-NOT: nn.param
// CHECK-COUNT-1: nn.linear
// CHECK-NOT: nn.activation
// CHECK-COUNT-1: nn.kv_append
// CHECK-NEXT: return %arg1
func.func @layer(%layer: index, %x: tensor<1x2x8xf32>) -> tensor<1x2x8xf32> {
  %w0 = nn.param "layers.*.attn.k.weight"[%layer] : tensor<8x8xf32>
  %w1 = nn.param "layers.*.attn.v.weight"[%layer] : tensor<8x8xf32>
  %a = nn.linear %x, %w0 : (tensor<1x2x8xf32>, tensor<8x8xf32>) -> tensor<1x2x8xf32>
  %b = nn.linear %x, %w1 : (tensor<1x2x8xf32>, tensor<8x8xf32>) -> tensor<1x2x8xf32>
  %c = nn.add %b, %x : tensor<1x2x8xf32>
  %k = nn.kv_append k %a[%layer] cached = 0 : tensor<1x2x8xf32> -> tensor<1x2x8xf32>
  return %x : tensor<1x2x8xf32>
}
