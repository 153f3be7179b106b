// RUN: lapidary-opt %s --pass-pipeline='lower-to-wafer{width=6 height=4}' | FileCheck %s
// RUN: lapidary-opt %s --pass-pipeline='fuse,lower-to-wafer{width=6 height=4}' | FileCheck %s
// RUN: not lapidary-opt %s --pass-pipeline='lower-to-wafer{width=1}' 2>&1 | FileCheck %s --check-prefix=NARROW

// Bias and residual start the linear layer, attention is one op, and what feeds it lies by tokens within head blocks.

// CHECK-LABEL: wafer.program @model grid = [6, 4] (%{{.*}}: tensor<2x4xi32>)
// CHECK: wafer.embed
// CHECK-SAME: at <0, 0, 6, 4>
// CHECK: wafer.repeat times = 3
// CHECK: %[[NORM:.*]] = wafer.norm rms
// CHECK: %[[Q:.*]] = wafer.linear %[[NORM]], %{{.*}} bias
// CHECK: wafer.rope half %[[Q]] sequences = 2 head_dim = 4
// CHECK: wafer.attention
// CHECK-SAME: sequences = 2 heads = 2 kv_heads = 2 scale = 0.5 causal
// CHECK: wafer.linear %{{.*}}, %{{.*}} plus %{{.*}} acc f32
// CHECK: wafer.map silu
// CHECK: wafer.yield
// CHECK: wafer.return
// CHECK-NOT: nn.

// NARROW: width=1: a number of PEs from 2 to 4096 is needed

module {
  func.func @layer(%layer: index, %x: tensor<2x4x8xf32>) -> tensor<2x4x8xf32> {
    %g = nn.param "layers.*.attn_norm.weight"[%layer] : tensor<8xf32>
    %h = nn.norm rms %x, %g eps = 1.0e-05 : (tensor<2x4x8xf32>, tensor<8xf32>) -> tensor<2x4x8xf32>
    %wq = nn.param "layers.*.attn.q.weight"[%layer] : tensor<8x8xf32>
    %q0 = nn.linear %h, %wq : (tensor<2x4x8xf32>, tensor<8x8xf32>) -> tensor<2x4x8xf32>
    %bq = nn.param "layers.*.attn.q.bias"[%layer] : tensor<8xf32>
    %q1 = nn.bias %q0, %bq : (tensor<2x4x8xf32>, tensor<8xf32>) -> tensor<2x4x8xf32>
    %q = nn.rope half %q1 head_dim = 4 rot_dims = 4 theta = 10000.0 : tensor<2x4x8xf32>
    %wk = nn.param "layers.*.attn.k.weight"[%layer] : tensor<8x8xf32>
    %k = nn.linear %h, %wk : (tensor<2x4x8xf32>, tensor<8x8xf32>) -> tensor<2x4x8xf32>
    %wv = nn.param "layers.*.attn.v.weight"[%layer] : tensor<8x8xf32>
    %v = nn.linear %h, %wv : (tensor<2x4x8xf32>, tensor<8x8xf32>) -> tensor<2x4x8xf32>
    %s0 = nn.scores %q, %k heads = 2 kv_heads = 2 : (tensor<2x4x8xf32>, tensor<2x4x8xf32>) -> tensor<2x2x4x4xf32>
    %s1 = nn.scale %s0 by 0.5 as "attention" : tensor<2x2x4x4xf32>
    %s2 = nn.mask %s1 causal : tensor<2x2x4x4xf32>
    %p = nn.softmax %s2 : tensor<2x2x4x4xf32>
    %o = nn.values %p, %v heads = 2 kv_heads = 2 : (tensor<2x2x4x4xf32>, tensor<2x4x8xf32>) -> tensor<2x4x8xf32>
    %wo = nn.param "layers.*.attn.out.weight"[%layer] : tensor<8x8xf32>
    %y = nn.linear %o, %wo : (tensor<2x4x8xf32>, tensor<8x8xf32>) -> tensor<2x4x8xf32>
    %z = nn.add %x, %y : tensor<2x4x8xf32>
    %a = nn.activation silu %z : tensor<2x4x8xf32>
    return %a : tensor<2x4x8xf32>
  }
  func.func @main(%ids: tensor<2x4xi32>) -> tensor<2x4x8xf32> {
    %table = nn.param "embed.weight" : tensor<16x8xf32>
    %e = nn.embed %ids, %table : (tensor<2x4xi32>, tensor<16x8xf32>) -> tensor<2x4x8xf32>
    %r = nn.repeat @layer times = 3 (%e) : (tensor<2x4x8xf32>) -> tensor<2x4x8xf32>
    return %r : tensor<2x4x8xf32>
  }
}
