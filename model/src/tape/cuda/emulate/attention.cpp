// Attention forward and backward against sums in float64. HEAD comes from the command line.
#include "check.h"
#include "../kernels/attention_tile.cuh"
#include "../kernels/attention.cu"
#include "../kernels/attention_grad.cu"
#include "../kernels/kept.cu"

struct Case {
    int b, l, h, g, document;
};

struct Reference {
    vector<double> out, log_sum, dq, dk, dv;
};

static Reference reference(const Case& c, const vector<bf16>& q, const vector<bf16>& k,
                           const vector<bf16>& v, const vector<bf16>& dout, const vector<u32>& start) {
    size_t n_q = q.size(), n_kv = k.size();
    Reference r{vector<double>(n_q), vector<double>((size_t)c.b * c.l * c.h), vector<double>(n_q),
                vector<double>(n_kv), vector<double>(n_kv)};
    double scale = 1.0 / std::sqrt((double)HEAD);
    for (int b = 0; b < c.b; b++)
        for (int h = 0; h < c.h; h++)
            for (int l = 0; l < c.l; l++) {
                size_t row = (size_t)b * c.l + l, at = (row * c.h + h) * HEAD;
                int first = start.empty() ? 0 : (int)start[row];
                auto kv = [&](int m) { return (((size_t)b * c.l + m) * c.g + h / (c.h / c.g)) * HEAD; };
                vector<double> p(l + 1), dp(l + 1);
                double sum = 0, along = 0;
                for (int m = first; m <= l; m++) {
                    for (int i = 0; i < HEAD; i++) p[m] += number(q[at + i]) * number(k[kv(m) + i]) * scale;
                    sum += std::exp(p[m]);
                }
                r.log_sum[row * c.h + h] = std::log(sum);
                for (int m = first; m <= l; m++) {
                    p[m] = std::exp(p[m]) / sum;
                    for (int i = 0; i < HEAD; i++) {
                        r.out[at + i] += p[m] * number(v[kv(m) + i]);
                        dp[m] += number(dout[at + i]) * number(v[kv(m) + i]);
                        r.dv[kv(m) + i] += p[m] * number(dout[at + i]);
                    }
                    along += p[m] * dp[m];
                }
                for (int m = first; m <= l; m++)
                    for (int i = 0; i < HEAD; i++) {
                        double ds = p[m] * (dp[m] - along) * scale;
                        r.dq[at + i] += ds * number(k[kv(m) + i]);
                        r.dk[kv(m) + i] += ds * number(q[at + i]);
                    }
            }
    return r;
}

// The same rows one by one, in any order, over keys and values that are kept.
static void check_kept(const Case& c, const vector<bf16>& q, const vector<bf16>& k, const vector<bf16>& v, const vector<double>& expected) {
    int rows = c.b * c.l, width = c.g * HEAD, capacity = c.l + 3;
    auto keys = poisoned_bf16((size_t)c.b * capacity * width), values = keys, out = poisoned_bf16(q.size());
    auto mixed_q = q, mixed_k = k, mixed_v = v;
    vector<u32> sequence(rows), position(rows);
    vector<double> mixed(q.size());
    for (int n = 0; n < rows; n++) {
        int from = rows - 1 - n;
        sequence[n] = c.b - 1 - from / c.l;
        position[n] = from % c.l;
        for (int i = 0; i < c.h * HEAD; i++) {
            mixed_q[n * c.h * HEAD + i] = q[from * c.h * HEAD + i];
            mixed[n * c.h * HEAD + i] = expected[from * c.h * HEAD + i];
        }
        for (int i = 0; i < width; i++) {
            mixed_k[n * width + i] = k[from * width + i];
            mixed_v[n * width + i] = v[from * width + i];
        }
    }
    launch(Dim{(unsigned)(rows + WARPS - 1) / WARPS}, THREADS, keep, mixed_k.data(), mixed_v.data(), sequence.data(), position.data(), keys.data(), values.data(), rows, width, capacity);
    launch(Dim{(unsigned)c.h, (unsigned)rows}, KEPT_THREADS, attend_kept, mixed_q.data(), keys.data(), values.data(), sequence.data(), position.data(), out.data(), c.h, c.g, capacity);
    char what[128];
    std::snprintf(what, sizeof what, "head %d, B %d L %d H %d G %d: kept", HEAD, c.b, c.l, c.h, c.g);
    expect_close(what, out, mixed, 6e-3);
}

static void check(const Case& c) {
    size_t n_q = (size_t)c.b * c.l * c.h * HEAD, n_kv = (size_t)c.b * c.l * c.g * HEAD, n = (size_t)c.b * c.l;
    auto q = random_bf16(n_q, 2.0f), k = random_bf16(n_kv, 2.0f), v = random_bf16(n_kv), dout = random_bf16(n_q);
    unsigned blocks = (c.l + ROWS - 1) / ROWS;
    vector<u32> start, low;
    if (c.document > 0) {
        start.resize(n);
        low.assign((size_t)c.b * blocks, 0xffffffffu);
        for (size_t i = 0; i < n; i++) {
            int document = c.document + 7 * (int)(i / c.l), position = i % c.l;
            start[i] = position / document * document;
            u32& least = low[i / c.l * blocks + position / ROWS];
            least = start[i] < least ? start[i] : least;
        }
    }
    Reference r = reference(c, q, k, v, dout, start);
    const u32 *starts = c.document ? start.data() : nullptr, *lows = c.document ? low.data() : nullptr;
    auto out = poisoned_bf16(n_q), dq = poisoned_bf16(n_q), dk = poisoned_bf16(n_kv), dv = poisoned_bf16(n_kv);
    auto log_sum = poisoned_float(n * c.h), along = poisoned_float(n * c.h);
    Dim grid = {blocks, (unsigned)c.h, (unsigned)c.b}, kv_grid = {blocks, (unsigned)c.g, (unsigned)c.b};
    launch(grid, THREADS, attention, q.data(), k.data(), v.data(), starts, lows, out.data(), log_sum.data(), c.l, c.h, c.g);
    char what[128];
    auto name = [&](const char* part) {
        std::snprintf(what, sizeof what, "head %d, B %d L %d H %d G %d document %d: %s", HEAD, c.b, c.l, c.h, c.g, c.document, part);
        return what;
    };
    expect_close(name("out"), out, r.out, 6e-3);
    expect_close(name("log_sum"), log_sum, r.log_sum, 1e-5);
    if (c.document == 0) check_kept(c, q, k, v, r.out);
    int rows = (int)n * c.h;
    launch(Dim{(unsigned)(rows + WARPS - 1) / WARPS}, THREADS, attention_along, out.data(), dout.data(), along.data(), rows);
    launch(grid, THREADS, attention_grad_q, q.data(), k.data(), v.data(), dout.data(), log_sum.data(), along.data(), starts, lows, dq.data(), c.l, c.h, c.g);
    launch(kv_grid, THREADS, attention_grad_kv, q.data(), k.data(), v.data(), dout.data(), log_sum.data(), along.data(), starts, lows, dk.data(), dv.data(), c.l, c.h, c.g);
    expect_close(name("dq"), dq, r.dq, 1e-2);
    expect_close(name("dk"), dk, r.dk, 1e-2);
    expect_close(name("dv"), dv, r.dv, 6e-3);
}

int main() {
    FOR_ORDERS {
        check({1, 1, 1, 1, 0});
        check({2, 70, 4, 2, 0});
        check({1, 64, 2, 1, 0});
        check({2, 150, 3, 1, 40});
        check({1, 200, 2, 2, 130});
        check({1, 129, 2, 1, 5});
    }
    char name[32];
    std::snprintf(name, sizeof name, "attention, head %d", HEAD);
    return finish(name);
}
