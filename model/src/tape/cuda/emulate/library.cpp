// The kernels as a library of the host, called by name with the arguments that a device would get: what a whole tape runs on in tests.
// HEAD comes from the command line.
#include "check.h"
#include <string>
#include <tuple>
namespace attentions {
#include "../kernels/attention_tile.cuh"
#include "../kernels/attention.cu"
#include "../kernels/attention_grad.cu"
#include "../kernels/kept.cu"
#undef WARPS
#undef THREADS
#undef ROWS
}
#include "others.h"

// What Rust says of an argument: 0 an address, 1 int, 2 a long number, 3 float.
template <class T> bool is_kind(int kind) {
    return std::is_pointer<T>::value ? kind == 0 : std::is_same<T, int>::value ? kind == 1 : std::is_same<T, u64>::value ? kind == 2 : kind == 3 && std::is_same<T, float>::value;
}

template <class... A>
static bool call(void (*kernel)(A...), Dim grid, unsigned threads, void** args, const int* kinds, int n) {
    int i = 0;
    if (n != (int)sizeof...(A)) return false;
    std::vector<bool> fits{is_kind<A>(kinds[i++])...};
    for (bool fit : fits)
        if (!fit) return false;
    i = 0;
    std::tuple<A...> values{*(A*)args[i++]...};
    emulate::launch(grid, threads, [&] { std::apply(kernel, values); });
    return true;
}

// 0 if it ran, 1 if the arguments are not those of the kernel, 2 if there is no such kernel.
extern "C" int emulate_launch(const char* name, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned shared,
                              void** args, const int* kinds, int n) {
    Dim grid = {x, y, z};
    emulate::shared_bytes = shared;
    std::string wanted = name;
#define TRY(space, kernel) \
    if (wanted == #kernel) return call(space::kernel, grid, threads, args, kinds, n) ? 0 : 1;
    TRY(norms, rms_norm) TRY(norms, rms_norm_grad) TRY(norms, add_columns) TRY(norms, sum_columns) TRY(norms, rope)
    TRY(norms, head_norm_rope) TRY(norms, head_norm_rope_grad)
    TRY(elements, relu2) TRY(elements, relu2_grad) TRY(elements, swiglu) TRY(elements, swiglu_grad) TRY(elements, add_bias)
    TRY(tables, embed) TRY(tables, add_rows) TRY(tables, sum_pieces) TRY(tables, sum_pieces_float) TRY(tables, add_pieces)
    TRY(tables, take_rows) TRY(tables, collect_rows)
    TRY(losses, softmax_loss) TRY(losses, sequence_losses) TRY(losses, add_losses)
    TRY(products, grouped_forward) TRY(products, grouped_grad_input) TRY(products, grouped_grad_weight)
    TRY(updates, squares) TRY(updates, judge) TRY(updates, adamw) TRY(updates, round_weights)
    TRY(updates, muon_direction) TRY(updates, muon_normalize) TRY(updates, muon_apply)
    TRY(attentions, attention) TRY(attentions, attention_along) TRY(attentions, attention_grad_q) TRY(attentions, attention_grad_kv)
    TRY(attentions, keep) TRY(attentions, attend_kept)
    return 2;
}

// out = alpha · op(a) · op(b) + beta · c, row-major bfloat16, float32 sums; the result float32 or bfloat16.
extern "C" void emulate_product(const int64_t* sizes, const void* a, const void* b, const void* c, void* out, float alpha, float beta) {
    int64_t m = sizes[0], n = sizes[1], k = sizes[2], lda = sizes[5], ldb = sizes[6], ldc = sizes[7], batch = sizes[9];
    bool ta = sizes[3], tb = sizes[4], is_float = sizes[8];
    for (int64_t z = 0; z < batch; z++) {
        const bf16 *x = (const bf16*)a + z * (ta ? k : m) * lda, *y = (const bf16*)b + z * (tb ? n : k) * ldb;
        vector<float> row(n);
        for (int64_t i = 0; i < m; i++) {
            row.assign(n, 0.0f);
            for (int64_t l = 0; l < k; l++) {
                float value = to_float(ta ? x[l * lda + i] : x[i * lda + l]);
                for (int64_t j = 0; j < n; j++) row[j] += value * to_float(tb ? y[j * ldb + l] : y[l * ldb + j]);
            }
            for (int64_t j = 0; j < n; j++) {
                int64_t at = z * m * ldc + i * ldc + j;
                float before = beta == 0 ? 0 : is_float ? ((const float*)c)[at] : to_float(((const bf16*)c)[at]);
                float value = alpha * row[j] + beta * before;
                if (is_float) ((float*)out)[at] = value;
                else ((bf16*)out)[at] = to_bf16(value);
            }
        }
    }
}
