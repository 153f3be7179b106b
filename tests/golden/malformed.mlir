// RUN: not lapidary-opt %s --pass-pipeline=canonicalize 2>&1 | FileCheck %s
// CHECK: malformed.mlir:[[#@LINE+3]]:{{[0-9]+}}: error:
func.func @main(%x: tensor<2x8xf32>) -> tensor<2x4xf32> {
  %w = nn.param "head.weight" : tensor<4x9xf32>
  %y = nn.linear %x, %w : (tensor<2x8xf32>, tensor<4x9xf32>) -> tensor<2x4xf32>
  return %y : tensor<2x4xf32>
}
