// RUN: lapidary-opt %s --pass-pipeline=fuse | FileCheck %s
// RUN: lapidary-opt %s --pass-pipeline='fuse{only=attention}' | FileCheck %s --check-prefix=ONLY
// RUN: lapidary-opt %s --pass-pipeline='fuse{without=attention}' | FileCheck %s --check-prefix=WITHOUT

// q, k and v are one product with rotation behind it, and rows go to the cache from there. Attention is one kernel:
// the scores never exist as a tensor.
// CHECK: %{{.*}}:3 = nn.fused "attn.q_k_v" matmul
// CHECK-COUNT-3: nn.linear
// CHECK-COUNT-2: nn.rope
// CHECK-COUNT-2: nn.kv_append
// CHECK: nn.fused "attention" attention
// CHECK: nn.scores
// CHECK-NEXT: nn.scale
// CHECK-NEXT: nn.mask
// CHECK-NEXT: nn.softmax
// CHECK-NEXT: nn.values
// CHECK: reason = "scores, scale, mask and softmax are never written"
// CHECK-NOT: tensor<1x2x2x4xf32>
// CHECK: return
// ONLY-COUNT-7: nn.fused
// ONLY: nn.fused "attention" attention
// ONLY-NOT: nn.fused
// WITHOUT: nn.fused "scores" matmul
// WITHOUT: nn.scores
// WITHOUT-NEXT: nn.scale
// WITHOUT-NEXT: nn.mask
// WITHOUT: nn.fused "softmax" row
// WITHOUT: nn.fused "values" matmul
func.func @layer(%layer: index, %h: tensor<1x2x8xf32>) -> tensor<1x2x8xf32> {
  %wq = nn.param "layers.*.attn.q.weight"[%layer] : tensor<8x8xf32>
  %wk = nn.param "layers.*.attn.k.weight"[%layer] : tensor<4x8xf32>
  %wv = nn.param "layers.*.attn.v.weight"[%layer] : tensor<4x8xf32>
  %q0 = nn.linear %h, %wq : (tensor<1x2x8xf32>, tensor<8x8xf32>) -> tensor<1x2x8xf32>
  %k0 = nn.linear %h, %wk : (tensor<1x2x8xf32>, tensor<4x8xf32>) -> tensor<1x2x4xf32>
  %v0 = nn.linear %h, %wv : (tensor<1x2x8xf32>, tensor<4x8xf32>) -> tensor<1x2x4xf32>
  %q = nn.rope half %q0 head_dim = 4 rot_dims = 4 theta = 1.000000e+04 offset = 2 : tensor<1x2x8xf32>
  %k1 = nn.rope half %k0 head_dim = 4 rot_dims = 4 theta = 1.000000e+04 offset = 2 : tensor<1x2x4xf32>
  %k = nn.kv_append k %k1[%layer] cached = 2 : tensor<1x2x4xf32> -> tensor<1x4x4xf32>
  %v = nn.kv_append v %v0[%layer] cached = 2 : tensor<1x2x4xf32> -> tensor<1x4x4xf32>
  %s0 = nn.scores %q, %k heads = 2 kv_heads = 1 : (tensor<1x2x8xf32>, tensor<1x4x4xf32>) -> tensor<1x2x2x4xf32>
  %s1 = nn.scale %s0 by 5.000000e-01 as "attention" : tensor<1x2x2x4xf32>
  %s2 = nn.mask %s1 causal offset = 2 : tensor<1x2x2x4xf32>
  %p = nn.softmax %s2 : tensor<1x2x2x4xf32>
  %o = nn.values %p, %v heads = 2 kv_heads = 1 : (tensor<1x2x2x4xf32>, tensor<1x4x4xf32>) -> tensor<1x2x8xf32>
  return %o : tensor<1x2x8xf32>
}
