// All kernels but those of attention, each file in a namespace of its own.
#pragma once
namespace norms {
#include "../kernels/norm.cu"
#undef WARPS
}
namespace elements {
#include "../kernels/elementwise.cu"
#undef THREADS
}
namespace tables {
#include "../kernels/rows.cu"
#undef WARPS
}
namespace losses {
#include "../kernels/cross_entropy.cu"
#undef THREADS
}
namespace products {
#include "../kernels/grouped.cu"
#undef THREADS
}
namespace updates {
#include "../kernels/optimizer.cu"
#undef THREADS
}
