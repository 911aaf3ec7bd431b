/* Enough of HTTP/1.0 to answer GET. */
#ifndef HTTP_H
#define HTTP_H

#include <stddef.h>

enum { HTTP_PATH = 512 };

/* A request, as far as it counts. */
struct http_request {
    char path[HTTP_PATH]; /* without a query, with `%` decoded */
    int head;             /* HEAD instead of GET */
    int gzip;             /* whether the other side takes gzip */
};

/* Reads a request's head: 0, or the status that refuses it. */
int http_read(const char *text, size_t size, struct http_request *request);

/* Whether a path can lead out of a directory. */
int http_leaves(const char *path);

/* The type of a file, by its name. */
const char *http_type(const char *name);

/* The words that belong to a status. */
const char *http_reason(int status);

#endif
