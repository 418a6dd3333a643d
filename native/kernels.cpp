// Compiled once per instruction set, with ANABRANCH_ISA naming it.
#include "kernels.h"

#include "kernels/attend.h"
#include "kernels/draw.h"
#include "kernels/linear.h"
#include "kernels/rows.h"

#define ANABRANCH_STRING_(x) #x
#define ANABRANCH_STRING(x) ANABRANCH_STRING_(x)

namespace anabranch::ANABRANCH_ISA {

const Kernels kKernels = {
    .isa = ANABRANCH_STRING(ANABRANCH_ISA),
    .quantize = quantize,
    .linear = linear,
    .norm = norm,
    .rope_store = rope_store,
    .attend_scratch = attend_scratch,
    .attend = attend,
    .merge = merge,
    .row_stats = row_stats,
    .tempered = tempered,
    .at_least = at_least,
};

}  // namespace anabranch::ANABRANCH_ISA
