/* The thin products of a low-rank layer in float32: of T tokens, n features in, m out, and rank r.

   A general matrix product packs both of its sides and divides the work by its own rules; with r as small as 8 that
   costs more than the arithmetic. Here one pass of a block of tokens forms the code and adds the update while the block
   is in the cache. Compiled on the machine that runs it (cpu_kernel.py); matrices are row-major and without gaps.

   Every value is summed in one order, whoever computes it: the results do not depend on the number of threads. */

#include <omp.h>
#ifdef __FMA__
#include <immintrin.h>
#endif

#define LANES 8
#define BLOCK 64 /* tokens, or terms of a sum, that stay in the cache together */
#define STRIPE (3 * LANES)

/* GCC and Clang lower these to whatever vectors the processor has. Floats need not be aligned to more than themselves. */
typedef float vec __attribute__((vector_size(4 * LANES), aligned(4)));
typedef float half_vec __attribute__((vector_size(2 * LANES)));

#define UNROLL _Pragma("GCC unroll 16")

/* A value that was loaded stays in a register; without this the load is repeated inside each multiplication. */
#ifdef __AVX__
#define HELD(v) __asm__("" : "+x"(v))
#else
#define HELD(v) (void)(v)
#endif

static inline vec load(const float *from) { return *(const vec *)from; }

static inline void store(float *to, vec v) { *(vec *)to = v; }

/* a b + c. Left to itself a compiler takes one rounding in one tile and two in another, as its tuning has it. */
static inline vec fused(vec a, vec b, vec c) {
#ifdef __FMA__
    return (vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

static inline vec all(float value) { return value - (vec){0}; }

static inline float sum_of(vec v) {
    half_vec s = __builtin_shufflevector(v, v, 0, 1, 2, 3) + __builtin_shufflevector(v, v, 4, 5, 6, 7);
    s += __builtin_shufflevector(s, s, 2, 3, 2, 3);
    return s[0] + s[1];
}

/* code[t, k] = sum over j of x[t, j] a[k, j], for TT tokens and KK rows of a at once. */
#define DOTS_TILE(TT, KK)                                                                                              \
    static void dots_##TT##x##KK(const float *restrict x, long n, const float *restrict a, float *restrict code,       \
                                 long r) {                                                                             \
        vec sums[TT][KK];                                                                                              \
        UNROLL for (int t = 0; t < TT; t++) UNROLL for (int k = 0; k < KK; k++) sums[t][k] = (vec){0};                 \
        long j = 0;                                                                                                    \
        for (; j + LANES <= n; j += LANES) {                                                                           \
            vec xs[TT];                                                                                                \
            UNROLL for (int t = 0; t < TT; t++) {                                                                      \
                xs[t] = load(x + t * n + j);                                                                           \
                HELD(xs[t]);                                                                                           \
            }                                                                                                          \
            UNROLL for (int k = 0; k < KK; k++) {                                                                      \
                vec as = load(a + k * n + j);                                                                          \
                HELD(as);                                                                                              \
                UNROLL for (int t = 0; t < TT; t++) sums[t][k] = fused(xs[t], as, sums[t][k]);                         \
            }                                                                                                          \
        }                                                                                                              \
        UNROLL for (int t = 0; t < TT; t++) UNROLL for (int k = 0; k < KK; k++) {                                      \
            float whole = sum_of(sums[t][k]);                                                                          \
            for (long i = j; i < n; i++) whole += x[t * n + i] * a[k * n + i];                                         \
            code[t * r + k] = whole;                                                                                   \
        }                                                                                                              \
    }

DOTS_TILE(3, 4)
DOTS_TILE(1, 4)
DOTS_TILE(4, 1)
DOTS_TILE(1, 1)

static void dots(const float *x, long tokens, long n, const float *a, long r, float *code) {
    long k = 0;
    for (; k + 4 <= r; k += 4) {
        long t = 0;
        for (; t + 3 <= tokens; t += 3) dots_3x4(x + t * n, n, a + k * n, code + t * r + k, r);
        for (; t < tokens; t++) dots_1x4(x + t * n, n, a + k * n, code + t * r + k, r);
    }
    for (; k < r; k++) {
        long t = 0;
        for (; t + 4 <= tokens; t += 4) dots_4x1(x + t * n, n, a + k * n, code + t * r + k, r);
        for (; t < tokens; t++) dots_1x1(x + t * n, n, a + k * n, code + t * r + k, r);
    }
}

/* A matrix that is read value by value: entry (p, q) is at[p * row + q * column]. */
typedef struct {
    const float *at;
    long row, column;
} Left;

static inline Left moved(Left l, long p, long q) {
    l.at += p * l.row + q * l.column;
    return l;
}

/* to[p, c] = from[p, c] + s * sum over q of l(p, q) y[q, c], for PP rows and VV vectors of columns at once. */
#define ADD_TILE(PP, VV)                                                                                               \
    static void add_##PP##x##VV(Left l, long terms, const float *restrict y, long y_row, const float *from, float *to, \
                                long row, float s) {                                                                   \
        vec sums[PP][VV];                                                                                              \
        UNROLL for (int p = 0; p < PP; p++) UNROLL for (int v = 0; v < VV; v++) sums[p][v] = (vec){0};                 \
        for (long q = 0; q < terms; q++) {                                                                             \
            vec ys[VV];                                                                                                \
            UNROLL for (int v = 0; v < VV; v++) {                                                                      \
                ys[v] = load(y + q * y_row + v * LANES);                                                               \
                HELD(ys[v]);                                                                                           \
            }                                                                                                          \
            UNROLL for (int p = 0; p < PP; p++) {                                                                      \
                vec factor = all(l.at[p * l.row + q * l.column]);                                                      \
                UNROLL for (int v = 0; v < VV; v++) sums[p][v] = fused(factor, ys[v], sums[p][v]);                     \
            }                                                                                                          \
        }                                                                                                              \
        UNROLL for (int p = 0; p < PP; p++) UNROLL for (int v = 0; v < VV; v++) {                                      \
            long i = p * row + v * LANES;                                                                              \
            store(to + i, fused(all(s), sums[p][v], from ? load(from + i) : (vec){0}));                                \
        }                                                                                                              \
    }

ADD_TILE(4, 3)
ADD_TILE(1, 3)
ADD_TILE(4, 1)
ADD_TILE(1, 1)

/* to = from + s * l y, all with the same distance `row` between rows, for `columns` columns; from NULL is zero. */
static void add(Left l, long rows, long terms, const float *y, long columns, const float *from, float *to, long row,
                float s) {
    float panel[BLOCK * STRIPE] __attribute__((aligned(64)));
    int packs = rows >= 16; /* rows of y are far apart; read so often, a stripe of them is put together first */
    for (long q = 0; q < terms; q += BLOCK) {
        long taken = terms - q < BLOCK ? terms - q : BLOCK, c = 0;
        const float *ys = y + q * row;
        const float *before = q ? to : from;
        for (; c + STRIPE <= columns; c += STRIPE) {
            const float *stripe = ys + c;
            long stripe_row = row, p = 0;
            if (packs) {
                for (long i = 0; i < taken; i++)
                    UNROLL for (int v = 0; v < 3; v++)
                        store(panel + i * STRIPE + v * LANES, load(ys + i * row + c + v * LANES));
                stripe = panel, stripe_row = STRIPE;
            }
#define ROWS(PP, VV)                                                                                                   \
    for (; p + PP <= rows; p += PP)                                                                                    \
        add_##PP##x##VV(moved(l, p, q), taken, stripe, stripe_row, before ? before + p * row + c : 0,                  \
                        to + p * row + c, row, s);
            ROWS(4, 3)
            ROWS(1, 3)
        }
        for (; c + LANES <= columns; c += LANES) {
            const float *stripe = ys + c;
            long stripe_row = row, p = 0;
            ROWS(4, 1)
            ROWS(1, 1)
        }
        for (; c < columns; c++)
            for (long p = 0; p < rows; p++) {
                Left from_p = moved(l, p, q);
                float sum = 0;
                for (long i = 0; i < taken; i++) sum += from_p.at[i * l.column] * ys[i * row + c];
                to[p * row + c] = (before ? before[p * row + c] : 0) + s * sum;
            }
    }
}

static long least(long a, long b) { return a < b ? a : b; }

/* to += s * code y, for a block of tokens. A narrow code leaves little to do for each value that is read: whole rows then, in
   the order in which they lie. */
static void expand(const float *code, long tokens, long r, const float *y, long n, float *to, float s) {
    long step = r <= 16 ? 4 : tokens;
    for (long t = 0; t < tokens; t += step)
        add((Left){code + t * r, r, 1}, least(tokens - t, step), r, y, n, to + t * n, to + t * n, n, s);
}

/* gradient (r, n) = s * code^T y. Columns are shared out, so that no two threads add to one value. */
static void gradient(const float *code, long tokens, long r, const float *y, long n, float *to, float s) {
    long parts = omp_get_num_threads(), part = omp_get_thread_num();
    long width = n / LANES / parts * LANES, first = part * width;
    add((Left){code, 1, r}, r, tokens, y + first, part == parts - 1 ? n - first : width, 0, to + first, n, s);
}

/* code = x a^T; then, unless out is NULL, out += s * code bt. With has_code the code is given.
   x (T, n), a (r, n), bt (r, m), code (T, r), out (T, m). */
void asymlora_forward(float *out, const float *x, const float *a, const float *bt, float *code, int has_code,
                      long tokens, long n, long m, long r, float s, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (tokens > BLOCK)
    for (long t = 0; t < tokens; t += BLOCK) {
        long rows = least(tokens - t, BLOCK);
        if (!has_code) dots(x + t * n, rows, n, a, r, code + t * r);
        if (out) expand(code + t * r, rows, r, bt, m, out + t * m, s);
    }
}

/* g_code = g bt^T if there is room for it; grad_x += s * g_code a; grad_b = s * code^T g; grad_a = s * g_code^T x. What is
   NULL is left out.
   g (T, m), x (T, n), a and grad_a (r, n), bt and grad_b (r, m), code and g_code (T, r), grad_x (T, n). */
void asymlora_backward(const float *g, const float *x, const float *a, const float *bt, const float *code,
                       float *g_code, float *grad_x, float *grad_a, float *grad_b, long tokens, long n, long m, long r,
                       float s, int threads) {
#pragma omp parallel num_threads(threads) if (tokens > BLOCK)
    {
        if (g_code) {
#pragma omp for schedule(static)
            for (long t = 0; t < tokens; t += BLOCK) {
                long rows = least(tokens - t, BLOCK);
                dots(g + t * m, rows, m, bt, r, g_code + t * r);
                if (grad_x) expand(g_code + t * r, rows, r, a, n, grad_x + t * n, s);
            }
        }
        if (grad_b) gradient(code, tokens, r, g, m, grad_b, s);
        if (grad_a) gradient(g_code, tokens, r, x, n, grad_a, s);
    }
}
