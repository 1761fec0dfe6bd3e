/* The program that every supervisor of the bench starts: says when it began, then sleeps until it is killed.
   One record of 16 bytes {nanoseconds, pid, 0} is written to the FIFO argv[1]: the time of a start is told by the one who was started.
   With argv[2], milliseconds, it fails after them. */
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

int main(int argc, char **argv) {
    struct timespec now;
    struct { uint64_t ns; uint32_t pid, zero; } record;
    clock_gettime(CLOCK_MONOTONIC, &now);
    record.ns = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
    record.pid = (uint32_t)getpid();
    record.zero = 0;
    int fd = open(argc > 1 ? argv[1] : "", O_WRONLY | O_CLOEXEC);
    if (fd < 0 || write(fd, &record, sizeof record) != sizeof record) return 1;
    close(fd);
    if (argc > 2) {
        long ms = atol(argv[2]);
        struct timespec life = {ms / 1000, ms % 1000 * 1000000};
        nanosleep(&life, NULL);
        return 1;
    }
    for (;;) pause();
}
