// RUN: lapidary-opt %s --pass-pipeline=symbol-dce | FileCheck %s

// CHECK-NOT: @nobody
// CHECK: func.func private @layer
// CHECK: func.func @main
// CHECK: nn.repeat @layer
func.func private @nobody(%x: tensor<1x2x8xf32>) -> tensor<1x2x8xf32> {
  return %x : tensor<1x2x8xf32>
}
func.func private @layer(%layer: index, %x: tensor<1x2x8xf32>) -> tensor<1x2x8xf32> {
  return %x : tensor<1x2x8xf32>
}
func.func @main(%x: tensor<1x2x8xf32>) -> tensor<1x2x8xf32> {
  %y = nn.repeat @layer times = 4 (%x) : (tensor<1x2x8xf32>) -> tensor<1x2x8xf32>
  return %y : tensor<1x2x8xf32>
}
