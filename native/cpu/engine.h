// The CPU as an engine.
#pragma once

#include <memory>

#include "../common/engine.h"

namespace lowrank {

// With the best instruction set of this processor, on as many threads as it has cores.
std::unique_ptr<Engine> openCpu();

}  // namespace lowrank
