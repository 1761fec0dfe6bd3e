/* The program whose output is captured: writes BYTES in pieces of PIECE bytes of 80-byte lines to standard output, all
   copies at once. Usage: writer FIFO GO BYTES PIECE [FILE]. Says when it is there as the sleeper does (bench/sleeper.c), begins
   when somebody opens the FIFO GO for writing, and says once more when the last piece is written. With FILE it writes there:
   what the machine can do without anybody in between. */
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static int say(const char *fifo, uint32_t what) {
    struct timespec now;
    struct { uint64_t ns; uint32_t pid, what; } record;
    clock_gettime(CLOCK_MONOTONIC, &now);
    record.ns = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
    record.pid = (uint32_t)getpid();
    record.what = what;
    int fd = open(fifo, O_WRONLY | O_CLOEXEC);
    if (fd < 0 || write(fd, &record, sizeof record) != sizeof record) return 1;
    return close(fd);
}

int main(int argc, char **argv) {
    if (argc < 5) return 2;
    size_t left = strtoul(argv[3], NULL, 10), piece = strtoul(argv[4], NULL, 10);
    char *text = malloc(piece);
    if (text == NULL) return 1;
    for (size_t i = 0; i < piece; i++) text[i] = i % 80 == 79 ? '\n' : (char)('a' + i % 80 % 26);
    if (argc > 5) {
        char path[4096] = "";
        char *end = path;
        for (const char *from = argv[5]; *from && end < path + 4000; from++) *end++ = *from;
        for (int pid = getpid(); pid > 0; pid /= 10) *end++ = (char)('0' + pid % 10);
        if (dup2(open(path, O_WRONLY | O_CREAT | O_APPEND, 0600), 1) != 1) return 1;
    }
    if (say(argv[1], 0)) return 1;
    if (open(argv[2], O_RDONLY | O_CLOEXEC) < 0) return 1;
    while (left > 0) {
        size_t now = left < piece ? left : piece;
        ssize_t written = write(1, text, now);
        if (written < 0) return 1;
        left -= (size_t)written;
    }
    if (say(argv[1], 1)) return 1;
    for (;;) pause();
}
