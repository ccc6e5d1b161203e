#pragma once

namespace vqkit {

// How many of the threads that were asked for may run.
int usable(int threads);

}  // namespace vqkit
