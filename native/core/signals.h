// SIGINT and SIGTERM for commands that end where nothing is lost: heard at any moment, also while JavaScript computes. SIGHUP, of a
// terminal that was closed, stands for SIGTERM; so does SIGUSR2, where a launcher passes it on alone: Open MPI's mpirun follows a SIGTERM
// by a SIGKILL a second later.
#pragma once
#include <string>

namespace densecl {

// From now on the first of them is remembered, and `message` (at most 255 bytes) written to the error output; the next one ends
// the process at once with 128 and its number. One that comes within a tenth of a second is the same one: a terminal and the program
// that started this one may both send it.
void listenForSignals(const std::string& message);
// The number of the signal that was heard, 0 for none.
int heardSignal();

}  // namespace densecl
