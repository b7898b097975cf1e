"""CUDA source of what neither FAISS nor CuPy has: the k nearest of many scores without sorting them, scores of
candidates.

`nearest`: one block a query. Scores become whole numbers in their own order (nearest smallest); the k-th smallest is
found byte by byte, each time by counting how often a byte occurs among those that agree so far; then everything below
it is written out, and as many of its equals as there is room for. Four passes over the scores and one to write,
whatever k is. The k come unsorted: they are few.

`rescore`: one warp a candidate.

Both compile with NVRTC and, the threads of a block taken one after another (``LANES 1``), with a C++ compiler.
"""

from __future__ import annotations

__all__ = ["SOURCE", "THREADS"]

THREADS = 256

SOURCE = r"""
#ifndef LANES
#define LANES 32
#endif

__device__ __forceinline__ unsigned key_of(float score, int sign) {
    // Adding zero turns -0 into 0, so that both are equal as keys, too.
    unsigned bits = __float_as_uint(score * (float)sign + 0.0f);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

extern "C" __global__ void nearest(
        const float* __restrict__ scores, long long count, int k, int sign,
        float* __restrict__ best, long long* __restrict__ columns) {
    __shared__ unsigned counts[256];
    __shared__ unsigned prefix;
    __shared__ int wanted, below, equal;
    const float* row = scores + (long long)blockIdx.x * count;
    if (threadIdx.x == 0) {
        prefix = 0;
        wanted = k;
        below = 0;
        equal = 0;
    }
    unsigned agreed = 0;
    for (int shift = 24; shift >= 0; shift -= 8) {
        for (int i = threadIdx.x; i < 256; i += blockDim.x) counts[i] = 0;
        __syncthreads();
        for (long long i = threadIdx.x; i < count; i += blockDim.x) {
            unsigned key = key_of(row[i], sign);
            if ((key & agreed) == prefix) atomicAdd(&counts[(key >> shift) & 255u], 1u);
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            unsigned byte = 0;
            while (byte < 255u && (int)counts[byte] < wanted) wanted -= (int)counts[byte++];
            prefix |= byte << shift;
        }
        agreed |= 255u << shift;
        __syncthreads();
    }
    // `prefix` is the k-th smallest key, and `wanted` of its equals are among the k.
    int first_equal = k - wanted;
    for (long long i = threadIdx.x; i < count; i += blockDim.x) {
        float score = row[i];
        unsigned key = key_of(score, sign);
        int at = -1;
        if (key < prefix) {
            at = atomicAdd(&below, 1);
        } else if (key == prefix) {
            int n = atomicAdd(&equal, 1);
            if (n < wanted) at = first_equal + n;
        }
        if (at >= 0) {
            best[(long long)blockIdx.x * k + at] = score;
            columns[(long long)blockIdx.x * k + at] = i;
        }
    }
}

extern "C" __global__ void rescore(
        const float* __restrict__ vectors, const float* __restrict__ queries, long long pairs, int per_query, int dim,
        int squared, float* __restrict__ scores) {
    long long pair = ((long long)blockIdx.x * blockDim.x + threadIdx.x) / LANES;
    int lane = threadIdx.x % LANES;
    if (pair >= pairs) return;
    const float* vector = vectors + pair * dim;
    const float* query = queries + pair / per_query * dim;
    float sum = 0.0f;
    for (int i = lane; i < dim; i += LANES) {
        float gap = vector[i] - query[i];
        sum += squared ? gap * gap : vector[i] * query[i];
    }
    for (int offset = LANES / 2; offset > 0; offset /= 2) sum += __shfl_down_sync(0xffffffffu, sum, offset);
    if (lane == 0) scores[pair] = sum;
}
"""
