// RUN: lapidary-opt %s --pass-pipeline=cse | FileCheck %s

// The same parameter and the same product twice are one; caches are written as often as the program says.
// CHECK-LABEL: @layer
// CHECK-COUNT-1: nn.param
// CHECK-NOT: nn.param
// CHECK-COUNT-1: nn.linear
// CHECK-NOT: nn.linear
// CHECK-COUNT-2: nn.kv_append
func.func @layer(%layer: index, %x: tensor<1x2x8xf32>) -> (tensor<1x2x8xf32>, tensor<1x2x8xf32>) {
  %w0 = nn.param "layers.*.attn.k.weight"[%layer] : tensor<8x8xf32>
  %w1 = nn.param "layers.*.attn.k.weight"[%layer] : tensor<8x8xf32>
  %a = nn.linear %x, %w0 : (tensor<1x2x8xf32>, tensor<8x8xf32>) -> tensor<1x2x8xf32>
  %b = nn.linear %x, %w1 : (tensor<1x2x8xf32>, tensor<8x8xf32>) -> tensor<1x2x8xf32>
  %k0 = nn.kv_append k %a[%layer] cached = 0 : tensor<1x2x8xf32> -> tensor<1x2x8xf32>
  %k1 = nn.kv_append k %b[%layer] cached = 0 : tensor<1x2x8xf32> -> tensor<1x2x8xf32>
  return %k0, %k1 : tensor<1x2x8xf32>, tensor<1x2x8xf32>
}
