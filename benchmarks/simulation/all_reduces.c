// Prints the simulated seconds of one all-reduce for each number of values, on SimGrid's SMPI.

#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int main(int argc, char** argv) {
  MPI_Init(&argc, &argv);
  int rank, size;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  double* seconds = malloc(size * sizeof(double));
  for (int i = 1; i < argc; ++i) {
    const int values = atoi(argv[i]);
    double* in = SMPI_SHARED_MALLOC(values * sizeof(double));
    double* out = SMPI_SHARED_MALLOC(values * sizeof(double));
    // All ranks begin at the same simulated second: a barrier would let some begin earlier.
    usleep((useconds_t)((i - MPI_Wtime()) * 1e6));
    const double began = MPI_Wtime();
    MPI_Allreduce(in, out, values, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
    const double mine = MPI_Wtime() - began;
    MPI_Gather(&mine, 1, MPI_DOUBLE, seconds, 1, MPI_DOUBLE, 0, MPI_COMM_WORLD);
    if (rank == 0) {
      double longest = 0;
      for (int other = 0; other < size; ++other)
        if (seconds[other] > longest) longest = seconds[other];
      printf("%d %.9f\n", values, longest);
    }
    SMPI_SHARED_FREE(in);
    SMPI_SHARED_FREE(out);
  }
  free(seconds);
  return MPI_Finalize();
}
