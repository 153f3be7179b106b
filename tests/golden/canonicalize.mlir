// RUN: lapidary-opt %s --pass-pipeline=canonicalize | FileCheck %s

// A factor of one folds away, and so does what nobody reads.
// CHECK-LABEL: @main
// CHECK-SAME: (%[[X:.*]]: tensor<2x8xf32>)
// CHECK-NEXT: return %[[X]]
func.func @main(%x: tensor<2x8xf32>) -> tensor<2x8xf32> {
  %unread = nn.param "head.weight" : tensor<4x8xf32>
  %same = nn.scale %x by 1.000000e+00 as "residual" : tensor<2x8xf32>
  return %same : tensor<2x8xf32>
}

// Two factors of one role become one.
// CHECK-LABEL: @twice
// CHECK: nn.scale %{{.*}} by 6.0 as "residual"
// CHECK-NOT: nn.scale
func.func @twice(%x: tensor<2x8xf32>) -> tensor<2x8xf32> {
  %a = nn.scale %x by 2.000000e+00 as "residual" : tensor<2x8xf32>
  %b = nn.scale %a by 3.000000e+00 as "residual" : tensor<2x8xf32>
  return %b : tensor<2x8xf32>
}
