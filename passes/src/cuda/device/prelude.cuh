// Types and small functions that every kernel uses. No header is included: NVRTC needs nothing but itself.
#define LP_DEVICE static __device__ __forceinline__
#define LP_UNROLL _Pragma("unroll")
#define LP_INFINITY __int_as_float(0x7f800000)

// bfloat16 travels as its 16 bits; arithmetic is in f32.
struct bf16 {
    unsigned short bits;
};

LP_DEVICE float lp_low(unsigned pair) { return __uint_as_float(pair << 16); }
LP_DEVICE float lp_high(unsigned pair) { return __uint_as_float(pair & 0xffff0000u); }
LP_DEVICE float lp_to_float(bf16 x) { return __uint_as_float(unsigned(x.bits) << 16); }
LP_DEVICE float lp_to_float(float x) { return x; }
LP_DEVICE void lp_from_float(float x, bf16& out) { out.bits = (unsigned short)lp_pack(x, 0.0f); }
LP_DEVICE void lp_from_float(float x, float& out) { out = x; }

// Rows begin on 16-byte boundaries and columns are multiples of W, so W elements are one or several aligned words.
LP_DEVICE void lp_spread(unsigned word, float* v, const bf16*) { v[0] = lp_low(word), v[1] = lp_high(word); }
LP_DEVICE void lp_spread(unsigned word, float* v, const float*) { v[0] = __uint_as_float(word); }
// Four whole numbers, exactly: a byte below 2^23 as a float, less 2^23 and the 128 that makes it positive.
LP_DEVICE void lp_spread(unsigned word, float* v, const signed char*) {
    const unsigned biased = word ^ 0x80808080u;
    LP_UNROLL for (int i = 0; i < 4; ++i) v[i] = __uint_as_float(__byte_perm(biased, 0x4b000000u, 0x7650 + i)) - 8388736.0f;
}
LP_DEVICE unsigned lp_join(const float* v, const bf16*) { return lp_pack(v[0], v[1]); }
LP_DEVICE unsigned lp_join(const float* v, const float*) { return __float_as_uint(v[0]); }

// Loads W elements of which the first `valid` exist; the others become zero.
template <int W, typename T>
LP_DEVICE void lp_load(const T* p, int valid, float (&v)[W]) {
    constexpr int BYTES = W * sizeof(T), PER_WORD = 4 / sizeof(T);
    if (BYTES >= 4 && valid >= W) {
        constexpr int WORDS = BYTES >= 4 ? BYTES / 4 : 1;
        unsigned words[WORDS];
        if constexpr (WORDS % 4 == 0) {
            LP_UNROLL for (int i = 0; i < WORDS / 4; ++i) {
                const uint4 x = reinterpret_cast<const uint4*>(p)[i];
                words[4 * i] = x.x, words[4 * i + 1] = x.y, words[4 * i + 2] = x.z, words[4 * i + 3] = x.w;
            }
        } else if constexpr (WORDS % 2 == 0) {
            LP_UNROLL for (int i = 0; i < WORDS / 2; ++i) {
                const uint2 x = reinterpret_cast<const uint2*>(p)[i];
                words[2 * i] = x.x, words[2 * i + 1] = x.y;
            }
        } else {
            LP_UNROLL for (int i = 0; i < WORDS; ++i) words[i] = reinterpret_cast<const unsigned*>(p)[i];
        }
        if constexpr (BYTES >= 4) {
            LP_UNROLL for (int i = 0; i < WORDS; ++i) lp_spread(words[i], v + i * PER_WORD, p);
        }
    } else {
        LP_UNROLL for (int e = 0; e < W; ++e) v[e] = e < valid ? lp_to_float(p[e]) : 0.0f;
    }
}

// Stores the first `valid` of W elements.
template <int W, typename T>
LP_DEVICE void lp_store(T* p, int valid, const float (&v)[W]) {
    constexpr int BYTES = W * sizeof(T), PER_WORD = 4 / sizeof(T);
    if (BYTES >= 4 && valid >= W) {
        constexpr int WORDS = BYTES >= 4 ? BYTES / 4 : 1;
        unsigned words[WORDS];
        if constexpr (BYTES >= 4) {
            LP_UNROLL for (int i = 0; i < WORDS; ++i) words[i] = lp_join(v + i * PER_WORD, p);
        }
        if constexpr (WORDS % 4 == 0) {
            LP_UNROLL for (int i = 0; i < WORDS / 4; ++i) {
                reinterpret_cast<uint4*>(p)[i] =
                    make_uint4(words[4 * i], words[4 * i + 1], words[4 * i + 2], words[4 * i + 3]);
            }
        } else if constexpr (WORDS % 2 == 0) {
            LP_UNROLL for (int i = 0; i < WORDS / 2; ++i) {
                reinterpret_cast<uint2*>(p)[i] = make_uint2(words[2 * i], words[2 * i + 1]);
            }
        } else {
            LP_UNROLL for (int i = 0; i < WORDS; ++i) reinterpret_cast<unsigned*>(p)[i] = words[i];
        }
    } else {
        LP_UNROLL for (int e = 0; e < W; ++e) {
            if (e < valid) lp_from_float(v[e], p[e]);
        }
    }
}

// Quotients are approximate to two units in the last place: the exact division is a call that costs registers.
LP_DEVICE float lp_silu(float x) { return __fdividef(x, 1.0f + expf(-x)); }
LP_DEVICE float lp_gelu(float x) { return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f)); }
LP_DEVICE float lp_gelu_tanh(float x) {
    // 0.5 (1 + tanh(u)) is the logistic function of 2 u.
    const float u = 0.79788456080286536f * (x + 0.044715f * x * x * x);
    return __fdividef(x, 1.0f + expf(-2.0f * u));
}
LP_DEVICE float lp_relu(float x) { return fmaxf(x, 0.0f); }
LP_DEVICE float lp_relu2(float x) { const float r = fmaxf(x, 0.0f); return r * r; }
// Their slopes.
LP_DEVICE float lp_silu_dx(float x) {
    const float s = __fdividef(1.0f, 1.0f + expf(-x));
    return s * (1.0f + x * (1.0f - s));
}
LP_DEVICE float lp_gelu_dx(float x) {
    return 0.5f * (1.0f + erff(x * 0.70710678118654752f)) + x * 0.39894228040143268f * expf(-0.5f * x * x);
}
LP_DEVICE float lp_gelu_tanh_dx(float x) {
    // x s(2 u) with s the logistic function: s + x s (1 - s) 2 u'.
    const float u = 0.79788456080286536f * (x + 0.044715f * x * x * x);
    const float s = __fdividef(1.0f, 1.0f + expf(-2.0f * u));
    return s + x * s * (1.0f - s) * 1.5957691216057307f * (1.0f + 0.134145f * x * x);
}
LP_DEVICE float lp_relu_dx(float x) { return x > 0.0f ? 1.0f : 0.0f; }
LP_DEVICE float lp_relu2_dx(float x) { return 2.0f * fmaxf(x, 0.0f); }

// Sine and cosine of an angle below 10^5: the angle less the nearest multiple of pi/2 (taken off in three parts), then
// the Taylor polynomials up to degree 9 and 8 on [-pi/4, pi/4]; no table, no stack.
LP_DEVICE void lp_sincos(float angle, float& sine, float& cosine) {
    const float quarter = rintf(angle * 0.63661977236758134f);
    float r = fmaf(quarter, -1.57079625129699707031e+00f, angle);
    r = fmaf(quarter, -7.54978941586159635335e-08f, r);
    r = fmaf(quarter, -5.39030295347427e-15f, r);
    const float r2 = r * r;
    float s = fmaf(r2, 2.7557314297e-06f, -1.9841270114e-04f);
    s = fmaf(r2, s, 8.3333337680e-03f);
    s = fmaf(r2, s, -1.6666667163e-01f);
    s = fmaf(r * r2, s, r);
    float c = fmaf(r2, 2.4801587642e-05f, -1.3888889225e-03f);
    c = fmaf(r2, c, 4.1666667908e-02f);
    c = fmaf(r2, c, -0.5f);
    c = fmaf(r2, c, 1.0f);
    const int q = int(quarter);
    const float swapped_s = (q & 1) ? c : s, swapped_c = (q & 1) ? s : c;
    sine = (q & 2) ? -swapped_s : swapped_s;
    cosine = ((q + 1) & 2) ? -swapped_c : swapped_c;
}

LP_DEVICE float lp_warp_sum(float x) {
    LP_UNROLL for (int lanes = 16; lanes > 0; lanes /= 2) x += __shfl_xor_sync(0xffffffffu, x, lanes);
    return x;
}
LP_DEVICE float lp_warp_max(float x) {
    LP_UNROLL for (int lanes = 16; lanes > 0; lanes /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, lanes));
    return x;
}
