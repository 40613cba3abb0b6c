// What computes the coefficients of every token, for CPUs. `coefficients.py` compiles and calls it; `plain` defines it.
//
// Shape legend: K blocks, T tokens, D width of a block, N rows of Q, C = D / CHUNK chunks of a row. Q and its gradient
// are packed [K, C, N, CHUNK]: what a tile reads lies together. (Rows of a power of two would fall on each other in the
// cache.) Tokens are last in [N, T] and [K, T], first in [T, N]. Sums do not depend on the number of threads.

#include <algorithm>
#include <cstring>
#include <vector>

using Long = long long;
constexpr int LANES = 16, CHUNK = 64, VECTORS = CHUNK / LANES, TILE = 4;
constexpr int ROWS = 3, TOKENS = 8;  // of a tile of products
constexpr Long BLOCK = 64;  // tokens of which a chunk of x stays in the innermost cache
typedef float Vector __attribute__((vector_size(4 * LANES)));
typedef float Unaligned __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef float Eight __attribute__((vector_size(32)));

static inline Vector load(const float* p) { return *reinterpret_cast<const Unaligned*>(p); }
static inline void store(float* p, Vector v) { *reinterpret_cast<Unaligned*>(p) = v; }

static inline float total(Vector v) {
  Eight halves[2];
  std::memcpy(halves, &v, sizeof v);
  const Eight s = halves[0] + halves[1];
  return ((s[0] + s[4]) + (s[1] + s[5])) + ((s[2] + s[6]) + (s[3] + s[7]));
}

// sums[r, i] += Q[r, d] x[i, d], lane by lane, of R rows, I tokens and one block.
template <int R, int I>
static void multiply(Vector* sums, const float* x, const float* q, Long d, Long n) {
  Vector kept[R][I];
  std::memcpy(kept, sums, sizeof kept);
  for (Long c = 0; c < d; c += CHUNK, q += n * CHUNK)
    for (int v = 0; v < CHUNK; v += LANES) {
      Vector xs[I];
      for (int i = 0; i < I; ++i) xs[i] = load(x + i * d + c + v);
      for (int r = 0; r < R; ++r) {
        const Vector w = load(q + r * CHUNK + v);
        for (int i = 0; i < I; ++i) kept[r][i] += w * xs[i];
      }
    }
  std::memcpy(sums, kept, sizeof kept);
}

// products = Q x and squares = x x of I tokens; a block of theirs stays in the innermost cache.
template <int I>
static void project_tile(const float* x, const float* q, float* products, float* squares, Vector* sums, Long k, Long t,
                         Long d, Long n) {
  std::fill(sums, sums + (n + 1) * I, Vector{});
  Vector* sums_of_squares = sums + n * I;
  for (Long b = 0; b < k; ++b, x += t * d, q += d * n) {
    Long r = 0;
    for (; r + ROWS <= n; r += ROWS) multiply<ROWS, I>(sums + r * I, x, q + r * CHUNK, d, n);
    for (; r < n; ++r) multiply<1, I>(sums + r * I, x, q + r * CHUNK, d, n);
    for (int i = 0; i < I; ++i)
      for (Long c = 0; c < d; c += LANES) {
        const Vector xs = load(x + i * d + c);
        sums_of_squares[i] += xs * xs;
        __builtin_prefetch(x + (I + i) * d + c, 0, 2);  // the next tile's
      }
  }
  for (int i = 0; i < I; ++i) {
    for (Long r = 0; r < n; ++r) products[r * t + i] = total(sums[r * I + i]);
    squares[i] = total(sums_of_squares[i]);
  }
}

extern "C" void project(
    const float* x, const float* q, float* products, float* squares, Long k, Long t, Long d, Long n, int threads) {
#pragma omp parallel num_threads(threads)
  {
    std::vector<Vector> sums((n + 1) * TOKENS);
#pragma omp for schedule(static)
    for (Long first = 0; first < t; first += BLOCK) {
      const Long end = std::min(t, first + BLOCK);
      Long i = first;
      for (; i + TOKENS <= end; i += TOKENS)
        project_tile<TOKENS>(x + i * d, q, products + i, squares + i, sums.data(), k, t, d, n);
      for (; i < end; ++i) project_tile<1>(x + i * d, q, products + i, squares + i, sums.data(), k, t, d, n);
    }
  }
}

// d_x += r d_u + Q^T d_products + 2 d_squares x, of I tokens and a chunk of their features. x is copied to `kept`.
template <int I>
static void add_to_gradient(float* d_x, const float* x, float* kept, const float* d_u, const float* read,
                            const float* q, const float* d_products, const float* d_squares, Long d, Long n) {
  Vector sums[I][VECTORS];
  for (int i = 0; i < I; ++i)
    for (int v = 0; v < VECTORS; ++v) {
      const Long at = i * d + v * LANES;
      const Vector xs = load(x + at);
      __builtin_prefetch(x + at + CHUNK, 0, 2);  // the next chunk's
      __builtin_prefetch(d_x + at + CHUNK, 1, 2);
      store(kept + i * CHUNK + v * LANES, xs);
      sums[i][v] = load(d_x + at) + 2 * d_squares[i] * xs;
      if (read) sums[i][v] += read[i] * load(d_u + at);
    }
  for (Long r = 0; r < n; ++r)
    for (int v = 0; v < VECTORS; ++v) {
      const Vector w = load(q + r * CHUNK + v * LANES);
      for (int i = 0; i < I; ++i) sums[i][v] += d_products[i * n + r] * w;
    }
  for (int i = 0; i < I; ++i)
    for (int v = 0; v < VECTORS; ++v) store(d_x + i * d + v * LANES, sums[i][v]);
}

// d_q += d_products^T x, of R rows and a chunk of features.
template <int R>
static void add_outer(float* d_q, const float* x, const float* d_products, Long tokens, Long n) {
  Vector sums[R][VECTORS];
  std::memcpy(sums, d_q, sizeof sums);
  for (Long i = 0; i < tokens; ++i)
    for (int v = 0; v < VECTORS; ++v) {
      const Vector xs = load(x + i * CHUNK + v * LANES);
      for (int r = 0; r < R; ++r) sums[r][v] += d_products[i * n + r] * xs;
    }
  std::memcpy(d_q, sums, sizeof sums);
}

// d_x is added to. d_q: [pieces, K, C, N, CHUNK], zeros, a sum for each piece of tokens. read, d_u: both or null.
extern "C" void project_backward(float* d_x, const float* x, const float* d_u, const float* read, const float* q,
                                 const float* d_products, const float* d_squares, float* d_q, Long k, Long t, Long d,
                                 Long n, Long piece, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (Long p = 0; p < (t + piece - 1) / piece; ++p)
    for (Long first = p * piece; first < std::min(t, (p + 1) * piece); first += BLOCK) {
      const Long tokens = std::min({BLOCK, t - first, (p + 1) * piece - first});
      const float* d_p = d_products + first * n;
      float kept[BLOCK * CHUNK];  // tokens lie D apart in x: too many of them fall on each other in the cache
      for (Long b = 0; b < k; ++b)
        for (Long c = 0; c < d; c += CHUNK) {
          const Long at = (b * t + first) * d + c, packed = (b * d + c) * n;
          const auto add = [&]<int I>(Long i) {
            add_to_gradient<I>(d_x + at + i * d, x + at + i * d, kept + i * CHUNK, d_u + (first + i) * d + c,
                               read ? read + b * t + first + i : nullptr, q + packed, d_p + i * n,
                               d_squares + first + i, d, n);
          };
          Long i = 0, r = 0;
          for (; i + TILE <= tokens; i += TILE) add.template operator()<TILE>(i);
          for (; i < tokens; ++i) add.template operator()<1>(i);
          float* sums = d_q + p * k * d * n + packed;
          for (; r + TILE <= n; r += TILE) add_outer<TILE>(sums + r * CHUNK, kept, d_p + r, tokens, n);
          for (; r < n; ++r) add_outer<1>(sums + r * CHUNK, kept, d_p + r, tokens, n);
        }
    }
}

// dots[b, t] = sum over d of x[b, t, d] u[t, d].
extern "C" void dots(const float* x, const float* u, float* out, Long k, Long t, Long d, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (Long i = 0; i < t; ++i)
    for (Long b = 0; b < k; ++b) {
      Vector sums[VECTORS] = {};
      for (Long c = 0; c < d; c += CHUNK)
        for (int v = 0; v < VECTORS; ++v)
          sums[v] += load(x + (b * t + i) * d + c + v * LANES) * load(u + i * d + c + v * LANES);
      out[b * t + i] = total((sums[0] + sums[1]) + (sums[2] + sums[3]));
    }
}

// The matrix of LANES tokens, normed `steps` times, first its columns. sums [steps][K]: what it was divided by.
template <int K>
static void balance(Vector (&m)[K][K], Vector* sums, Long steps, float eps) {
  for (int step = 0; step < steps; ++step)
    for (int j = 0; j < K; ++j) {
      Vector sum = {};
      for (int i = 0; i < K; ++i) sum += step % 2 ? m[j][i] : m[i][j];
      sums[step * K + j] = sum += eps;
      const Vector inverse = 1.0f / sum;
      for (int i = 0; i < K; ++i) (step % 2 ? m[j][i] : m[i][j]) *= inverse;
    }
}

template <int K>
static void balance_backward(Vector (&a)[K][K], Vector (&m)[K][K], const Vector* sums, Long steps) {
  for (int step = steps - 1; step >= 0; --step)
    for (int j = 0; j < K; ++j) {
      Vector sum = {};
      for (int i = 0; i < K; ++i) sum += step % 2 ? a[j][i] : a[i][j];
      for (int i = 0; i < K; ++i) {
        Vector& p = step % 2 ? m[j][i] : m[i][j];
        (step % 2 ? a[j][i] : a[i][j]) -= p * sum;
        p *= sums[step * K + j];
      }
    }
}

// Matrices [K, K, T] of LANES tokens or, at the end, fewer: other lanes are 1.
template <int K, typename Each>
static void for_each_number(Each each) {
  for (int i = 0; i < K; ++i)
    for (int j = 0; j < K; ++j) each(i, j);
}

template <int K>
static void gather(Vector (&m)[K][K], const float* from, Long t, Long tokens) {
  for_each_number<K>([&](int i, int j) {
    m[i][j] = Vector{} + 1.0f;
    std::memcpy(&m[i][j], from + (i * K + j) * t, sizeof(float) * std::min<Long>(LANES, tokens));
  });
}

template <int K>
static void scatter(const Vector (&m)[K][K], float* to, Long t, Long tokens) {
  for_each_number<K>([&](int i, int j) {
    std::memcpy(to + (i * K + j) * t, &m[i][j], sizeof(float) * std::min<Long>(LANES, tokens));
  });
}

// comb of soft; where d is given, the gradient of soft's logits instead.
template <int K>
static void sinkhorn_all(const float* soft, const float* d, float* out, Long t, Long steps, float eps, int threads) {
#pragma omp parallel num_threads(threads)
  {
    std::vector<Vector> sums(steps * K);
#pragma omp for schedule(static)
    for (Long first = 0; first < t; first += LANES) {
      Vector s[K][K], m[K][K], a[K][K];
      gather<K>(s, soft + first, t, t - first);
      for_each_number<K>([&](int i, int j) { m[i][j] = s[i][j] + eps; });
      balance<K>(m, sums.data(), steps, eps);
      if (!d) {
        scatter<K>(m, out + first, t, t - first);
        continue;
      }
      gather<K>(a, d + first, t, t - first);
      for_each_number<K>([&](int i, int j) { a[i][j] *= m[i][j]; });
      balance_backward<K>(a, m, sums.data(), steps);
      for (int i = 0; i < K; ++i) {
        Vector sum = {};
        for (int j = 0; j < K; ++j) sum += a[i][j] *= s[i][j] / (s[i][j] + eps);
        for (int j = 0; j < K; ++j) a[i][j] -= s[i][j] * sum;
      }
      scatter<K>(a, out + first, t, t - first);
    }
  }
}

extern "C" void sinkhorn(
    const float* soft, const float* d, float* out, Long k, Long t, Long steps, float eps, int threads) {
  using Function = void (*)(const float*, const float*, float*, Long, Long, float, int);
  constexpr Function widths[] = {sinkhorn_all<1>, sinkhorn_all<2>, sinkhorn_all<3>, sinkhorn_all<4>,
                                 sinkhorn_all<5>, sinkhorn_all<6>, sinkhorn_all<7>, sinkhorn_all<8>};
  widths[k - 1](soft, d, out, t, steps, eps, threads);
}
