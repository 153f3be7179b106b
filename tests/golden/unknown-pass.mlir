// RUN: not lapidary-opt %s --pass-pipeline=canonicalize,fuze 2>&1 | FileCheck %s
// CHECK: error: pipeline `canonicalize,fuze`: unknown pass `fuze`; the passes are recompute, canonicalize, cse
module {}
