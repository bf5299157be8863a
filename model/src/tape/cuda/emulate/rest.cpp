// All kernels but attention against sums in float64.
#include "check.h"
#include "others.h"

static unsigned ceil_div(size_t a, size_t b) { return (unsigned)((a + b - 1) / b); }
template <class T> vector<double> doubles(const vector<T>& x) {
    vector<double> y(x.size());
    for (size_t i = 0; i < x.size(); i++) y[i] = number(x[i]);
    return y;
}

static void check_norm(int rows, int d, bool adds, bool accumulates) {
    auto x = random_float((size_t)rows * d, 3), weight = random_float(d);
    auto add = random_bf16((size_t)rows * d), dout = random_bf16((size_t)rows * d);
    auto sum = adds ? poisoned_float((size_t)rows * d) : x;
    auto out = poisoned_bf16((size_t)rows * d);
    auto inverse = poisoned_float(rows), dweight = random_float(d);
    auto dsum = accumulates ? random_float((size_t)rows * d) : poisoned_float((size_t)rows * d);
    auto half = poisoned_bf16((size_t)rows * d);
    vector<double> sums(x.size()), outs(x.size()), dsums(x.size()), dweights = doubles(dweight);
    for (int n = 0; n < rows; n++) {
        double squares = 0, along = 0;
        for (int i = n * d; i < (n + 1) * d; i++) {
            sums[i] = (double)x[i] + (adds ? number(add[i]) : 0.0);
            squares += sums[i] * sums[i];
        }
        double r = 1 / std::sqrt(squares / d + 1e-6);
        for (int i = n * d; i < (n + 1) * d; i++) along += weight[i % d] * number(dout[i]) * sums[i];
        for (int i = n * d; i < (n + 1) * d; i++) {
            outs[i] = sums[i] * r * weight[i % d];
            dsums[i] = (accumulates ? dsum[i] : 0.0) + weight[i % d] * number(dout[i]) * r - sums[i] * along * r * r * r / d;
            dweights[i % d] += number(dout[i]) * sums[i] * r;
        }
    }
    launch(Dim{ceil_div(rows, 4)}, 128, norms::rms_norm, x.data(), adds ? add.data() : nullptr, sum.data(), weight.data(), out.data(), inverse.data(), rows, d, 1e-6f);
    unsigned blocks = 3;
    auto partial = poisoned_float((size_t)blocks * d);
    launch(Dim{blocks}, 128, norms::rms_norm_grad, sum.data(), inverse.data(), weight.data(), dout.data(), dsum.data(), half.data(), partial.data(), rows, d, accumulates);
    launch(Dim{ceil_div(d, 32)}, 256, norms::add_columns, partial.data(), dweight.data(), blocks, d);
    expect_close("norm: sum", sum, sums, 1e-6);
    expect_close("norm: out", out, outs, 4e-3);
    expect_close("norm: dsum", dsum, dsums, 1e-5);
    expect_close("norm: dsum in bf16", half, dsums, 4e-3);
    expect_close("norm: dweight", dweight, dweights, 1e-5);
}

static void check_heads(int n, int h, int k, int l) {
    int heads = n * h;
    auto x = random_bf16((size_t)heads * k, 2), dout = random_bf16((size_t)heads * k);
    auto weight = random_float(k), dweight = random_float(k);
    vector<float> table((size_t)l * k);
    for (int p = 0; p < l; p++)
        for (int i = 0; i < k / 2; i++) {
            double angle = p * std::pow(10000.0, -2.0 * i / k);
            table[p * k + i] = std::cos(angle);
            table[p * k + k / 2 + i] = std::sin(angle);
        }
    vector<double> outs(x.size()), dxs(x.size()), dweights = doubles(dweight), turned(x.size());
    for (int i = 0; i < heads; i++) {
        size_t at = (size_t)i * k;
        const float* angles = &table[i / h % l * k];
        double squares = 0, along = 0;
        for (int j = 0; j < k; j++) squares += number(x[at + j]) * number(x[at + j]);
        double r = 1 / std::sqrt(squares / k + 1e-6);
        vector<double> y(k), dy(k);
        for (int j = 0; j < k; j++) y[j] = number(x[at + j]) * r * weight[j];
        for (int j = 0; j < k / 2; j++) {
            double c = angles[j], s = angles[j + k / 2], a = number(dout[at + j]), b = number(dout[at + j + k / 2]);
            outs[at + j] = y[j] * c - y[j + k / 2] * s;
            outs[at + j + k / 2] = y[j + k / 2] * c + y[j] * s;
            turned[at + j] = number(x[at + j]) * c - number(x[at + j + k / 2]) * s;
            turned[at + j + k / 2] = number(x[at + j + k / 2]) * c + number(x[at + j]) * s;
            dy[j] = a * c + b * s;
            dy[j + k / 2] = b * c - a * s;
        }
        for (int j = 0; j < k; j++) along += weight[j] * dy[j] * number(x[at + j]);
        for (int j = 0; j < k; j++) {
            dxs[at + j] = weight[j] * dy[j] * r - number(x[at + j]) * along * r * r * r / k;
            dweights[j] += dy[j] * number(x[at + j]) * r;
        }
    }
    auto out = poisoned_bf16(x.size());
    auto inverse = poisoned_float(heads);
    unsigned blocks = 2;
    auto partial = poisoned_float((size_t)blocks * k);
    launch(Dim{ceil_div(heads, 4)}, 128, norms::head_norm_rope, x.data(), weight.data(), table.data(), (const u32*)nullptr, out.data(), inverse.data(), heads, h, k, l, 1e-6f);
    launch(Dim{blocks}, 128, norms::head_norm_rope_grad, x.data(), inverse.data(), weight.data(), table.data(), dout.data(), partial.data(), heads, h, k, l);
    launch(Dim{ceil_div(k, 32)}, 256, norms::add_columns, partial.data(), dweight.data(), blocks, k);
    expect_close("head norm: out", out, outs, 4e-3);
    expect_close("head norm: dx", dout, dxs, 5e-3);
    expect_close("head norm: dweight", dweight, dweights, 1e-5);
    auto there = x;
    launch(Dim{ceil_div(heads, 4)}, 128, norms::rope, there.data(), table.data(), (const u32*)nullptr, heads, h, k, l, 1.0f);
    expect_close("rope", there, turned, 4e-3);
    launch(Dim{ceil_div(heads, 4)}, 128, norms::rope, there.data(), table.data(), (const u32*)nullptr, heads, h, k, l, -1.0f);
    expect_close("rope back", there, doubles(x), 6e-3);
    vector<u32> position(heads / h);
    for (size_t n = 0; n < position.size(); n++) position[n] = n % l;
    auto by_position = x, of_positions = poisoned_bf16(x.size());
    launch(Dim{ceil_div(heads, 4)}, 128, norms::rope, by_position.data(), table.data(), position.data(), heads, h, k, 1, 1.0f);
    expect_close("rope at positions", by_position, turned, 4e-3);
    launch(Dim{ceil_div(heads, 4)}, 128, norms::head_norm_rope, x.data(), weight.data(), table.data(), position.data(), of_positions.data(), inverse.data(), heads, h, k, 1, 1e-6f);
    expect_close("head norm at positions", of_positions, outs, 4e-3);
}

static void check_elements(size_t n) {
    auto gate = random_bf16(8 * n, 6), up = random_bf16(8 * n, 2), dout = random_bf16(8 * n), out = poisoned_bf16(8 * n);
    unsigned grid = ceil_div(n, 256);
    vector<double> relu(8 * n), drelu(8 * n), swiglu(8 * n), dup(8 * n), dgate(8 * n);
    for (size_t i = 0; i < 8 * n; i++) {
        double a = number(gate[i]), b = number(up[i]), dy = number(dout[i]), s = 1 / (1 + std::exp(-a));
        relu[i] = a > 0 ? a * a : 0;
        drelu[i] = a > 0 ? 2 * a * dy : 0;
        swiglu[i] = a * s * b;
        dup[i] = dy * a * s;
        dgate[i] = dy * b * s * (1 + a * (1 - s));
    }
    launch(Dim{grid}, 256, elements::relu2, gate.data(), out.data(), n);
    expect_close("relu2", out, relu, 4e-3);
    auto dx = dout;
    launch(Dim{grid}, 256, elements::relu2_grad, gate.data(), dx.data(), n);
    expect_close("relu2: dx", dx, drelu, 4e-3);
    out = poisoned_bf16(8 * n);
    launch(Dim{grid}, 256, elements::swiglu, gate.data(), up.data(), out.data(), n);
    expect_close("swiglu", out, swiglu, 4e-3);
    out = poisoned_bf16(8 * n), dx = dout;
    launch(Dim{grid}, 256, elements::swiglu_grad, gate.data(), up.data(), dx.data(), out.data(), n);
    expect_close("swiglu: dup", dx, dup, 4e-3);
    expect_close("swiglu: dgate", out, dgate, 4e-3);
    auto bias = random_float(24);
    auto with = up;
    vector<double> expected = doubles(up);
    for (size_t i = 0; i < 24 * (n / 3); i++) expected[i] += bias[i % 24];
    launch(Dim{grid}, 256, elements::add_bias, with.data(), bias.data(), n / 3 * 3, 24);
    expect_close("add_bias", with, expected, 4e-3);
    int rows = (int)(n / 3);
    if (rows == 0) return;
    unsigned blocks = 5;
    auto partial = poisoned_float(blocks * 24), dbias = random_float(24);
    vector<double> dbiases = doubles(dbias);
    for (int i = 0; i < rows * 24; i++) dbiases[i % 24] += number(up[i]);
    launch(Dim{blocks}, 256, norms::sum_columns, up.data(), partial.data(), rows, 24);
    launch(Dim{1}, 256, norms::add_columns, partial.data(), dbias.data(), blocks, 24);
    expect_close("bias: gradient", dbias, dbiases, 1e-5);
}

// Rows sorted by id, in pieces of at most `most`, as the host makes them.
struct Pieces {
    vector<u32> order, first{0}, id, pieces{0};
    vector<u32> n_pieces, n_ids;
    Pieces(const vector<u32>& ids, u32 v, size_t most) {
        for (u32 wanted = 0; wanted < v; wanted++) {
            vector<u32> rows;
            for (u32 n = 0; n < ids.size(); n++)
                if (ids[n] == wanted) rows.push_back(n);
            if (rows.empty()) continue;
            for (size_t i = 0; i < rows.size(); i++) {
                order.push_back(rows[i]);
                if (i % most == most - 1 || i + 1 == rows.size()) first.push_back(order.size());
            }
            id.push_back(wanted);
            pieces.push_back(first.size() - 1);
        }
        n_pieces = {(u32)first.size() - 1}, n_ids = {(u32)id.size()};
    }
};

static void check_tables(int rows, int d, u32 v) {
    vector<u32> ids(rows), buckets(rows);
    for (auto& id : ids) id = (u32)(uniform() * uniform() * v);
    for (auto& id : buckets) id = (u32)(uniform() * v);
    auto table = random_float((size_t)v * d), bigrams = random_float((size_t)v * d), dout = random_float((size_t)rows * d);
    auto out = poisoned_float((size_t)rows * d), dtable = random_float((size_t)v * d);
    auto half = random_bf16((size_t)rows * d);
    vector<double> outs(out.size()), dtables = doubles(dtable), added = doubles(half), of_halves = doubles(dtable);
    for (int i = 0; i < rows * d; i++) {
        size_t at = (size_t)ids[i / d] * d + i % d;
        outs[i] = (double)table[at] + bigrams[(size_t)buckets[i / d] * d + i % d];
        added[i] += table[at];
        dtables[at] += dout[i];
        of_halves[at] += number(half[i]);
    }
    unsigned grid = ceil_div(rows, 4);
    launch(Dim{grid}, 128, tables::embed, table.data(), ids.data(), bigrams.data(), buckets.data(), out.data(), rows, d);
    expect_close("embed", out, outs, 1e-6);
    Pieces pieces(ids, v, 5);
    auto sums = poisoned_float((size_t)pieces.n_pieces[0] * d), dtable_2 = dtable;
    launch(Dim{grid + 3}, 128, tables::sum_pieces_float, dout.data(), pieces.order.data(), pieces.first.data(), pieces.n_pieces.data(), sums.data(), d);
    launch(Dim{grid + 2}, 128, tables::add_pieces, sums.data(), pieces.id.data(), pieces.pieces.data(), pieces.n_ids.data(), dtable.data(), d);
    expect_close("embed: gradient", dtable, dtables, 1e-6);
    launch(Dim{grid + 3}, 128, tables::sum_pieces, half.data(), pieces.order.data(), pieces.first.data(), pieces.n_pieces.data(), sums.data(), d);
    launch(Dim{grid + 2}, 128, tables::add_pieces, sums.data(), pieces.id.data(), pieces.pieces.data(), pieces.n_ids.data(), dtable_2.data(), d);
    expect_close("rows: gradient", dtable_2, of_halves, 1e-6);
    launch(Dim{grid}, 128, tables::add_rows, table.data(), ids.data(), half.data(), rows, d);
    expect_close("add_rows", half, added, 4e-3);
}

static void check_plans(int n, int a, int d) {
    vector<u32> token(a), first{0}, assignment;
    for (auto& t : token) t = (u32)(uniform() * n);
    for (int t = 0; t < n; t++) {
        for (int i = 0; i < a; i++)
            if ((int)token[i] == t) assignment.push_back(i);
        first.push_back(assignment.size());
    }
    auto weight = random_float(a);
    auto x = random_bf16((size_t)n * d), y = random_bf16((size_t)a * d), before = random_bf16((size_t)n * d);
    for (bool weighs : {false, true}) {
        auto w = [&](int i) { return weighs ? (double)weight[i] : 1.0; };
        vector<double> taken((size_t)a * d), collected(x.size()), added = doubles(before);
        for (int i = 0; i < a * d; i++) {
            taken[i] = w(i / d) * number(x[(size_t)token[i / d] * d + i % d]);
            collected[(size_t)token[i / d] * d + i % d] += w(i / d) * number(y[i]);
            added[(size_t)token[i / d] * d + i % d] += w(i / d) * number(y[i]);
        }
        auto out = poisoned_bf16((size_t)a * d), sum = poisoned_bf16(x.size()), more = before;
        const float* weights = weighs ? weight.data() : nullptr;
        launch(Dim{ceil_div(a, 4)}, 128, tables::take_rows, x.data(), token.data(), weights, out.data(), a, d);
        launch(Dim{ceil_div(n, 4)}, 128, tables::collect_rows, y.data(), first.data(), assignment.data(), weights, sum.data(), n, d, 0);
        launch(Dim{ceil_div(n, 4)}, 128, tables::collect_rows, y.data(), first.data(), assignment.data(), weights, more.data(), n, d, 1);
        expect_close("take_rows", out, taken, 4e-3);
        expect_close("collect_rows", sum, collected, 4e-3);
        expect_close("collect_rows, adding", more, added, 4e-3);
    }
}

static void check_loss(int rows, int v, float cap) {
    int pitch = (v + 7) / 8 * 8;
    auto logits = random_bf16((size_t)rows * pitch, 8);
    for (int n = 0; n < rows; n++)
        for (int i = v; i < pitch; i++) logits[(size_t)n * pitch + i] = half(NAN);
    vector<u32> target(rows);
    for (int i = 0; i < rows; i++) target[i] = i % 5 == 3 ? 0xffffffffu : (u32)(uniform() * v);
    vector<float> scale = {0.37f};
    vector<double> nlls(rows), gradient(logits.size());
    int b = rows % 3 == 0 ? 3 : 1, l = rows / b;
    double sum = 0;
    vector<double> total = {2.5}, sequences(b, 7.0), expected(b);
    for (int n = 0; n < rows; n++) {
        if (target[n] == 0xffffffffu) continue;
        double exps = 0;
        vector<double> z(v), slope(v, 1.0);
        for (int i = 0; i < v; i++) {
            z[i] = number(logits[(size_t)n * pitch + i]);
            if (cap > 0) {
                double bounded = std::tanh(z[i] / cap);
                z[i] = cap * bounded;
                slope[i] = 1 - bounded * bounded;
            }
            exps += std::exp(z[i]);
        }
        for (int i = 0; i < v; i++)
            gradient[(size_t)n * pitch + i] = scale[0] * slope[i] * (std::exp(z[i]) / exps - (i == (int)target[n]));
        nlls[n] = std::log(exps) - z[target[n]];
        sum += nlls[n];
        expected[n / l] += nlls[n];
    }
    auto nll = poisoned_float(rows);
    launch(Dim{(unsigned)rows}, 256, losses::softmax_loss, logits.data(), target.data(), scale.data(), nll.data(), v, pitch, cap);
    launch(Dim{(unsigned)b}, 256, losses::sequence_losses, nll.data(), sequences.data(), l);
    launch(Dim{1}, 256, losses::add_losses, sequences.data(), total.data(), b);
    expect_close("loss of each row", nll, nlls, 1e-5);
    expect_close("gradient of logits", logits, gradient, 4e-3);
    expect_close("loss of each sequence", vector<float>(sequences.begin(), sequences.end()), expected, 1e-5);
    expect_close("loss", vector<float>{(float)total[0]}, {sum + 2.5}, 1e-5);
}

static void check_products(const vector<vector<int>>& runs, int d, int f) {
    // runs: expert and rows, in order; experts' weights lie apart, at multiples of 64.
    int n_experts = 4, rows = 0;
    size_t apart = ((size_t)d * f + 63) / 64 * 64 + 64;
    auto weights = random_bf16(n_experts * apart);
    vector<products::TileOfRows> tiles;
    vector<vector<u32>> stretches(n_experts);
    vector<int> expert_of_row;
    for (auto& run : runs) {
        for (int row = rows; row < rows + run[1]; row += 128)
            tiles.push_back({(u32)run[0], (u32)row, (u32)min(row + 128, rows + run[1])});
        stretches[run[0]].push_back(rows);
        stretches[run[0]].push_back(rows + run[1]);
        for (int i = 0; i < run[1]; i++) expert_of_row.push_back(run[0]);
        rows += run[1];
    }
    auto x = random_bf16((size_t)rows * d), dout = random_bf16((size_t)rows * f);
    auto out = poisoned_bf16((size_t)rows * f), dx = poisoned_bf16((size_t)rows * d), more = random_bf16((size_t)rows * f);
    auto gradients = random_float(n_experts * apart);
    vector<double> outs((size_t)rows * f), dxs((size_t)rows * d), dweights = doubles(gradients), mores = doubles(more);
    for (int n = 0; n < rows; n++) {
        size_t w = expert_of_row[n] * apart;
        for (int j = 0; j < f; j++)
            for (int i = 0; i < d; i++) {
                double weight = number(weights[w + (size_t)j * d + i]);
                outs[(size_t)n * f + j] += number(x[(size_t)n * d + i]) * weight;
                dxs[(size_t)n * d + i] += number(dout[(size_t)n * f + j]) * weight;
                dweights[w + (size_t)j * d + i] += number(dout[(size_t)n * f + j]) * number(x[(size_t)n * d + i]);
            }
    }
    for (size_t i = 0; i < mores.size(); i++) mores[i] += outs[i];
    vector<u32> starts;
    for (int e = 0; e < n_experts; e++) starts.push_back(e * apart / 64);
    vector<u32> n_tiles = {(u32)tiles.size()};
    unsigned bound = n_tiles[0] + 1;
    launch(Dim{ceil_div(f, 128), bound}, 256, products::grouped_forward, x.data(), weights.data(), starts.data(), tiles.data(), n_tiles.data(), out.data(), d, f, 0);
    launch(Dim{ceil_div(f, 128), bound}, 256, products::grouped_forward, x.data(), weights.data(), starts.data(), tiles.data(), n_tiles.data(), more.data(), d, f, 1);
    launch(Dim{ceil_div(d, 128), bound}, 256, products::grouped_grad_input, dout.data(), weights.data(), starts.data(), tiles.data(), n_tiles.data(), dx.data(), d, f, 0);
    vector<u32> first{0}, flat;
    for (int e = 0; e < n_experts; e++) {
        flat.insert(flat.end(), stretches[e].begin(), stretches[e].end());
        first.push_back(flat.size() / 2);
    }
    launch(Dim{ceil_div(d, 128), ceil_div(f, 128), (unsigned)n_experts}, 256, products::grouped_grad_weight, x.data(), dout.data(), starts.data(), first.data(), flat.data(), gradients.data(), d, f);
    expect_close("grouped forward", out, outs, 4e-3);
    expect_close("grouped forward, adding", more, mores, 4e-3);
    expect_close("grouped dx", dx, dxs, 4e-3);
    expect_close("grouped dweight", gradients, dweights, 1e-5);
}

static void check_updates() {
    vector<u32> sizes = {640, 64, 1000};
    vector<u32> starts = {0, 10, 11};
    size_t n = 64 * 11 + 1024;
    auto weights = random_float(n), first = random_float(n, 0.1f), second = random_float(n), gradients = random_float(n);
    for (auto& v : second) v = std::fabs(v);
    for (size_t i = 64 * 11 + 1000; i < n; i++) gradients[i] = 0;
    auto halves = random_bf16(n);
    vector<updates::Chunk> chunks;
    for (u32 p = 0; p < 3; p++)
        for (u32 at = 0; at < sizes[p]; at += 256) chunks.push_back({starts[p] + at / 64, std::min(256u, sizes[p] - at), p});
    vector<updates::Rates> rates = {{0.99f, 0.02f, 1.3f, 1}, {1.0f, 0.5f, 1.0f, 0}, {1.0f, 0.01f, 2.0f, 1}};
    vector<updates::Report> report = {{1.0, NAN, NAN, 7}};
    double squares = 0;
    for (float g : gradients) squares += (double)g * g;
    vector<double> sums(4, NAN);
    launch(Dim{4}, 256, updates::squares, gradients.data(), sums.data(), n);
    launch(Dim{1}, 256, updates::judge, sums.data(), report.data(), 4, 3.0f);
    double norm = std::sqrt(squares), scale = 3.0 / norm;
    expect_close("norm and scale", vector<float>{(float)report[0].norm, report[0].scale, (float)report[0].is_finite}, {norm, scale, 1.0}, 1e-5);
    vector<double> w = doubles(weights), m = doubles(first), v = doubles(second);
    auto half = doubles(halves);
    for (u32 p : {0u, 2u})
        for (u32 i = starts[p] * 64; i < starts[p] * 64 + sizes[p]; i++) {
            double g = gradients[i] * scale;
            m[i] = 0.9 * m[i] + 0.1 * g;
            v[i] = 0.95 * v[i] + 0.05 * g * g;
            w[i] = w[i] * rates[p].keep - rates[p].lr * m[i] / (std::sqrt(v[i] * rates[p].by_second) + 1e-8);
            half[i] = w[i];
        }
    auto run = [&] {
        launch(Dim{(unsigned)chunks.size()}, 256, updates::adamw, weights.data(), halves.data(), gradients.data(), first.data(), second.data(), chunks.data(), rates.data(), report.data(), 0.9f, 0.95f, 1e-8f);
    };
    run();
    expect_close("adamw: weights", weights, w, 1e-6);
    expect_close("adamw: first", first, m, 1e-6);
    expect_close("adamw: second", second, v, 1e-6);
    expect_close("adamw: bf16 weights", halves, half, 4e-3);
    gradients[3] = NAN;
    launch(Dim{4}, 256, updates::squares, gradients.data(), sums.data(), n);
    launch(Dim{1}, 256, updates::judge, sums.data(), report.data(), 4, 3.0f);
    run();
    expect_close("not finite: nothing changes", weights, w, 1e-6);
    expect_close("not finite: said", vector<float>{(float)report[0].is_finite}, {0.0}, 1e-9);
    launch(Dim{ceil_div(n, 2048)}, 256, updates::round_weights, weights.data(), halves.data(), n);
    expect_close("rounded", halves, w, 4e-3);
}

static void check_muon() {
    u64 n = 24 * 40;
    vector<u32> starts = {0, 15, 30}, parameter = {0, 1, 2};
    vector<updates::Rates> rates = {{0.9f, 0, 0, 1}, {0.9f, 0, 0, 0}, {1.0f, 0, 0, 1}};
    vector<updates::Report> report = {{0, 0, 0.5f, 1}};
    auto gradients = random_float(45 * 64), momentum = random_float(45 * 64), weights = random_float(45 * 64);
    auto halves = random_bf16(45 * 64), directions = poisoned_bf16(3 * n);
    vector<double> m = doubles(momentum), direction(3 * n), w = doubles(weights), half = doubles(halves);
    for (int z : {0, 2}) {
        double squares = 0;
        for (u64 i = 0; i < n; i++) {
            double g = gradients[64 * starts[z] + i] * 0.5;
            m[64 * starts[z] + i] = 0.95 * m[64 * starts[z] + i] + g;
            direction[z * n + i] = g + 0.95 * m[64 * starts[z] + i];
            squares += direction[z * n + i] * direction[z * n + i];
        }
        for (u64 i = 0; i < n; i++) {
            direction[z * n + i] /= std::sqrt(squares);
            double& weight = w[64 * starts[z] + i];
            weight = weight * rates[z].keep - 0.3 * direction[z * n + i];
            half[64 * starts[z] + i] = weight;
        }
    }
    vector<double> sums(6, NAN);
    launch(Dim{2, 3}, 256, updates::muon_direction, gradients.data(), momentum.data(), directions.data(), sums.data(), starts.data(), parameter.data(), rates.data(), report.data(), 0.95f, n);
    launch(Dim{2, 3}, 256, updates::muon_normalize, directions.data(), sums.data(), n);
    launch(Dim{2, 3}, 256, updates::muon_apply, weights.data(), halves.data(), directions.data(), starts.data(), parameter.data(), rates.data(), report.data(), 0.3f, n);
    expect_close("muon: momentum", momentum, m, 1e-6);
    expect_close("muon: directions", directions, direction, 6e-3);
    expect_close("muon: weights", weights, w, 1e-3);
    expect_close("muon: bf16 weights", halves, half, 4e-3);
}

int main() {
    FOR_ORDERS {
        check_norm(1, 8, false, false);
        check_norm(37, 264, true, true);
        check_norm(20, 768, true, false);
        check_heads(5, 3, 32, 4);
        check_heads(7, 1, 128, 7);
        check_heads(6, 2, 8, 3);
        check_elements(1);
        check_elements(300);
        check_tables(1, 8, 3);
        check_tables(90, 264, 11);
        check_plans(30, 41, 40);
        check_plans(3, 1, 8);
        check_loss(6, 11, 0);
        check_loss(5, 5003, 0);
        check_loss(5, 5003, 2);
        check_products({{1, 1}}, 8, 8);
        check_products({{2, 130}, {0, 3}, {3, 64}}, 72, 136);
        check_products({{0, 40}, {1, 5}, {0, 140}}, 200, 40);
        check_updates();
        check_muon();
    }
    return finish("all kernels but attention");
}
