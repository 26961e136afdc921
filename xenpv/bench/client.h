int store_client_run(const int *sockets, int count, const char *script, int size,
                     const int *answers, int rounds);
