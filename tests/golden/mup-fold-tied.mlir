// RUN: lapidary-opt %s --pass-pipeline=mup-fold | FileCheck %s

// A tied head keeps the table as it is: the residual stream runs divided by s = 4. Branches into it are divided in
// the linear that makes them, weight and bias; eps of norms that read it become eps / s². The factor on the logits
// goes into the final norm, the one on the scores into the query projection.
// CHECK-LABEL: @layer
// CHECK: nn.param "layers.*.attn_norm.weight"[%{{.*}}] : tensor<8xf32>
// CHECK: nn.norm layer {{.*}} eps = 6.25e-07
// CHECK: nn.param "layers.*.attn.q.weight"[%{{.*}}] scale = 0.125
// CHECK: nn.param "layers.*.attn.q.bias"[%{{.*}}] scale = 0.125
// CHECK: nn.param "layers.*.attn.k.weight"[%{{.*}}] : tensor<8x8xf32>
// CHECK: nn.scores
// CHECK-NEXT: nn.softmax
// CHECK: nn.param "layers.*.attn.out.weight"[%{{.*}}] scale = 0.25
// CHECK: nn.param "layers.*.attn.out.bias"[%{{.*}}] scale = 0.25
// CHECK: nn.add
// CHECK: nn.norm layer {{.*}} eps = 6.25e-07
// CHECK: nn.param "layers.*.mlp.up.weight"[%{{.*}}] : tensor<16x8xf32>
// CHECK: nn.param "layers.*.mlp.down.weight"[%{{.*}}] scale = 0.25
func.func private @layer(%layer: index, %x: tensor<1x2x8xf32>) -> tensor<1x2x8xf32> {
  %g = nn.param "layers.*.attn_norm.weight"[%layer] : tensor<8xf32>
  %h = nn.norm layer %x, %g eps = 1.000000e-05 : (tensor<1x2x8xf32>, tensor<8xf32>) -> tensor<1x2x8xf32>
  %wq = nn.param "layers.*.attn.q.weight"[%layer] : tensor<8x8xf32>
  %bq = nn.param "layers.*.attn.q.bias"[%layer] : tensor<8xf32>
  %wk = nn.param "layers.*.attn.k.weight"[%layer] : tensor<8x8xf32>
  %q0 = nn.linear %h, %wq : (tensor<1x2x8xf32>, tensor<8x8xf32>) -> tensor<1x2x8xf32>
  %q1 = nn.bias %q0, %bq : (tensor<1x2x8xf32>, tensor<8xf32>) -> tensor<1x2x8xf32>
  %q = nn.rope interleaved %q1 head_dim = 8 rot_dims = 4 theta = 1.000000e+04 : tensor<1x2x8xf32>
  %k = nn.linear %h, %wk : (tensor<1x2x8xf32>, tensor<8x8xf32>) -> tensor<1x2x8xf32>
  %s0 = nn.scores %q, %k heads = 1 kv_heads = 1 : (tensor<1x2x8xf32>, tensor<1x2x8xf32>) -> tensor<1x1x2x2xf32>
  %s1 = nn.scale %s0 by 1.250000e-01 as "mup.attention" : tensor<1x1x2x2xf32>
  %p = nn.softmax %s1 : tensor<1x1x2x2xf32>
  %o = nn.values %p, %k heads = 1 kv_heads = 1 : (tensor<1x1x2x2xf32>, tensor<1x2x8xf32>) -> tensor<1x2x8xf32>
  %wo = nn.param "layers.*.attn.out.weight"[%layer] : tensor<8x8xf32>
  %bo = nn.param "layers.*.attn.out.bias"[%layer] : tensor<8xf32>
  %a0 = nn.linear %o, %wo : (tensor<1x2x8xf32>, tensor<8x8xf32>) -> tensor<1x2x8xf32>
  %a1 = nn.bias %a0, %bo : (tensor<1x2x8xf32>, tensor<8xf32>) -> tensor<1x2x8xf32>
  %x1 = nn.add %x, %a1 : tensor<1x2x8xf32>
  %g2 = nn.param "layers.*.mlp_norm.weight"[%layer] : tensor<8xf32>
  %h2 = nn.norm layer %x1, %g2 eps = 1.000000e-05 : (tensor<1x2x8xf32>, tensor<8xf32>) -> tensor<1x2x8xf32>
  %wu = nn.param "layers.*.mlp.up.weight"[%layer] : tensor<16x8xf32>
  %u = nn.linear %h2, %wu : (tensor<1x2x8xf32>, tensor<16x8xf32>) -> tensor<1x2x16xf32>
  %act = nn.activation gelu %u : tensor<1x2x16xf32>
  %wd = nn.param "layers.*.mlp.down.weight"[%layer] : tensor<8x16xf32>
  %d = nn.linear %act, %wd : (tensor<1x2x16xf32>, tensor<8x16xf32>) -> tensor<1x2x8xf32>
  %x2 = nn.add %x1, %d : tensor<1x2x8xf32>
  return %x2 : tensor<1x2x8xf32>
}

// CHECK-LABEL: @main
// CHECK: nn.param "embed.weight" : tensor<32x8xf32>
// CHECK: nn.param "position.weight" : tensor<4x8xf32>
// CHECK: nn.position
// CHECK-NEXT: nn.repeat
// CHECK: nn.param "final_norm.weight" scale = 0.5
// CHECK: nn.param "final_norm.bias" scale = 0.5
// CHECK: nn.norm layer {{.*}} eps = 6.25e-07
// CHECK: nn.linear
// CHECK-NEXT: return
func.func @main(%ids: tensor<1x2xi32>) -> tensor<1x2x32xf32> {
  %table = nn.param "embed.weight" : tensor<32x8xf32>
  %e = nn.embed %ids, %table : (tensor<1x2xi32>, tensor<32x8xf32>) -> tensor<1x2x8xf32>
  %positions = nn.param "position.weight" : tensor<4x8xf32>
  %p = nn.position %e, %positions : (tensor<1x2x8xf32>, tensor<4x8xf32>) -> tensor<1x2x8xf32>
  %x = nn.scale %p by 4.000000e+00 as "mup.embedding" : tensor<1x2x8xf32>
  %y = nn.repeat @layer times = 2 (%x) : (tensor<1x2x8xf32>) -> tensor<1x2x8xf32>
  %g = nn.param "final_norm.weight" : tensor<8xf32>
  %b = nn.param "final_norm.bias" : tensor<8xf32>
  %h = nn.norm layer %y, %g, %b eps = 1.000000e-05 : (tensor<1x2x8xf32>, tensor<8xf32>, tensor<8xf32>) -> tensor<1x2x8xf32>
  %logits = nn.linear %h, %table : (tensor<1x2x8xf32>, tensor<32x8xf32>) -> tensor<1x2x32xf32>
  %scaled = nn.scale %logits by 5.000000e-01 as "mup.output" : tensor<1x2x32xf32>
  return %scaled : tensor<1x2x32xf32>
}
